"""Models whose weights lie on a grid already, as fused checkpoints: nothing is trained or rounded.

    source    integers and scales, or weights, of a file or folder (`lrqat.importing.sources`)
    recover   the grid, integers and scales of weights that were multiplied out and rounded
    write     a fused checkpoint, tensor by tensor

Whatever a source says, each tensor is held against the source's own dequantisation, in its type.
"""
