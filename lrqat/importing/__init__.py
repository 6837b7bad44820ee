"""Models whose weights lie on a grid already, as fused checkpoints: nothing is trained or rounded.

    source    what a file or folder holds: integers and scales, or weights (`lrqat.importing.sources`)
    recover   the grid, integers and scales of weights that were multiplied out and rounded
    write     a fused checkpoint, tensor by tensor

Whatever a source says, each tensor is held against the source's own dequantisation, in its type.
"""
