"""The trained weights as the builder takes them.

Integers are stored in the narrowest container that holds the grid, and one scale for each block, a
power of two from 16 to 256; a scale of a whole row is repeated.
"""

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from exporters.embedding_and_head import head_is_embedding
from lrqat.checkpoint.reader import Checkpoint
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.grids.grid import Grid
from lrqat.grids.packing import containers

# The builder's own names; transformers has the same in all architectures that it was tried with.
EMBEDDING, HEAD = "model.embed_tokens", "lm_head"
_BLOCKS = (256, 128, 64, 32, 16)
_PROJECTION = re.compile(r"model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)")


@dataclass(frozen=True)
class Part:
    """A trained weight.

    Attributes:
        name: module name in the checkpoint.
        rows: outputs.
        columns: inputs.
        bits: width of a stored integer.
        block: inputs that share a stored scale.
        module: what the builder calls it; an embedding that is the head too is its head.
    """

    name: str
    rows: int
    columns: int
    bits: int
    block: int
    module: str

    @property
    def nbytes(self) -> int:
        """Bytes of its integers, scales and zero-points."""
        blocks = self.columns // self.block
        row = self.columns * self.bits // 8 + 4 * blocks + -(-blocks * self.bits // 8)
        return self.rows * row

    def read(
        self, checkpoint: Checkpoint
    ) -> tuple[NDArray[np.int8], NDArray[np.float32], NDArray[np.int8]]:
        """Integers (rows, columns), and scales and zero-points (rows, blocks)."""
        tensor = checkpoint.quantized(self.name)
        scale, zero = tensor.scale, tensor.scales.zero_point
        zeros = np.zeros(scale.shape, np.int8) if zero is None else zero
        repeats = self.columns // self.block // scale.shape[1]
        return (
            tensor.q,
            np.repeat(scale, repeats, axis=1),
            np.repeat(zeros, repeats, axis=1),
        )


def part_of(checkpoint: Checkpoint, name: str) -> Part:
    """The trained weight `name`, of which `refuses` says nothing."""
    grid, (rows, columns) = checkpoint.grid(name), checkpoint.shape(name)
    block = _block(grid, columns)
    assert block is not None
    module = HEAD if checkpoint.kind(name) == WeightKind.EMBEDDING else name
    return Part(name, rows, columns, containers(grid)[0], block, module)


def is_spelled_out(checkpoint: Checkpoint, name: str) -> bool:
    """Whether a trained weight is given to the builder as the float32 that its integers mean.

    It takes an embedding of integers only where that is the head too. Nothing is rounded.
    """
    return checkpoint.kind(name) == WeightKind.EMBEDDING and not (
        name == EMBEDDING and head_is_embedding(checkpoint)
    )


def refuses(checkpoint: Checkpoint, name: str) -> str | None:
    """Why the trained weight `name` has no exact form here, or None."""
    grid, kind = checkpoint.grid(name), checkpoint.kind(name)
    has_a_place = kind == WeightKind.LINEAR and (name == HEAD or _PROJECTION.fullmatch(name))
    if kind != WeightKind.EMBEDDING and not has_a_place:
        return (
            f"onnxruntime-genai's builder takes projections of the layers and the head from a "
            f"quantised checkpoint, and this is a {kind} of another name; use --format onnx"
        )
    if grid.minimum is not None:
        return (
            f"{grid.name} has a floating minimum for each group, and MatMulNBits has integer "
            "zero-points; train on int4-asym-g32, or export to GGUF"
        )
    if grid.levels is not None:
        return f"{grid.name} is a codebook; train on int4-g32, or export to GGUF"
    columns = checkpoint.shape(name)[1]
    if _block(grid, columns) is None:
        return (
            f"{columns} inputs in groups of {grid.group_size or columns} are no blocks of 16 to "
            "256 weights, a power of two; use --format onnx"
        )
    return None


def _block(grid: Grid, columns: int) -> int | None:
    fitting = (b for b in _BLOCKS if (grid.group_size or columns) % b == 0)
    return next(fitting, None)
