"""The block-wise stage: every decoder block learns to do what it did in full precision.

One after the other, with what the quantized blocks before it hand on as inputs, and what the
full-precision block makes of the full-precision inputs as targets. All weights of the block are
trained, so this moves many more integers than the low-rank matrices can; memory is one block's.
Source: Chen et al., "EfficientQAT: Efficient Quantization-Aware Training for Large Language
Models", 2024, section 3.2 (Block-AP).

    walk      a model whose blocks are run one at a time
    states    hidden states of all sequences, between two blocks
    moments   what enters the projections of a block, and where V starts
    memory    what a block needs
    loss      what the steps of a block minimise
    fitting   the steps of one block
    saved     finished blocks on disk, for a run that is continued
    stage     the loop over the blocks
"""
