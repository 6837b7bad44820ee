"""The scale of a whole weight, where its type leaves it to a tensor of its own, NAME.scale.

llama.cpp reads such a tensor, F32 of one number (of stacked experts, one each), beside any weight
of a block and beside the output head. Its graph has to multiply with it, and not every graph does,
nor does anything multiply the rows that are looked up in an embedding: `Architecture.scaled` has
the weights where it happens. In feed-forward the graph would add a bias before it multiplies, so it
stops there (an assertion of `build_ffn`). Source: src/llama-model.cpp (`create_tensor` with
"scale"), src/llama-graph.cpp `build_lora_mm`, src/models/*.cpp.
"""

from collections.abc import Collection

import numpy as np

from exporters.gguf.architecture import Architecture
from exporters.gguf.blocks import Block, find_tensor_scale
from exporters.gguf.tensors.sources import HEAD, Source
from lrqat.checkpoint.reader import Checkpoint

_WEIGHT, _SCALE, _BIAS = ".weight", ".scale", ".bias"
_FEED_FORWARD = "ffn_"


def weight_scale(checkpoint: Checkpoint, source: Source, block: Block) -> Source | None:
    """The tensor that goes with a trained weight in the type `block`, or None if none does.

    Raises:
        ExportRefusedError: a weight whose rows have several scales.
    """
    scale_of = find_tensor_scale(block)
    if not source.quantized or scale_of is None:
        return None
    values = np.array([scale_of(scales) for scales in source.scales(checkpoint)], np.float32)
    name = source.name.removesuffix(_WEIGHT) + _SCALE
    return Source(name, "computed", False, values.shape, values=values)


def refuses_scale(
    architecture: Architecture, source: Source, block: Block, names: Collection[str]
) -> str | None:
    """Why llama.cpp would not compute a trained weight with its scale, or None.

    Args:
        architecture: llama.cpp's graph.
        source: the weight.
        block: its type.
        names: those of all tensors of the file.
    """
    if not source.quantized or find_tensor_scale(block) is None:
        return None
    kind = source.name.split(".", 2)[2] if source.name.startswith("blk.") else source.name
    if kind not in (*architecture.scaled, HEAD):
        reason = f"with which llama.cpp's graph of {architecture.name} does not multiply {kind}"
    elif kind.startswith(_FEED_FORWARD) and source.name.removesuffix(_WEIGHT) + _BIAS in names:
        reason = f"and llama.cpp stops at {kind} if that has a bias, too"
    else:
        return None
    return (
        f"{source.origin}: {block.TYPE} has a scale for the whole tensor, {reason}; train this "
        "module on another grid, such as mxfp4 (--grid-for), or leave it unquantized (--keep)"
    )
