"""The grids: which values a weight may take, and how the scale that multiplies them is stored.

A weight is `scale * q`, with `q` an integer in [q_min, q_max] and one scale for `group_size`
consecutive inputs of a row (or for the whole row). The scale is a number of `scale_dtype`: training
rounds it to that type inside the forward pass, so what is optimised is what ships.

A grid is named after the llama.cpp type that holds it exactly, or after itself. This table is the
only one: tools, exporters and documentation read it. Adding a grid is adding a row.
"""

import difflib
from dataclasses import dataclass

from lrqat.errors import GridError


@dataclass(frozen=True)
class Grid:
    """One row of the table.

    Attributes:
        name: what `--grid` takes.
        bits: width of the stored integer.
        q_min: smallest integer.
        q_max: largest integer.
        group_size: consecutive inputs that share a scale; None: the whole row (per channel).
        scale_dtype: numpy name of the type that the scale is stored in.
        signed_scale: whether a scale may be negative. With the full range -2^(b-1)..2^(b-1)-1 a
            negative scale puts the extra level on the side of the largest weight (the signed-max
            rule of llama.cpp's Q4_0, ggml-quants.c `quantize_row_q4_0_ref`).
        summary: one line for `--help` and the documentation.
    """

    name: str
    bits: int
    q_min: int
    q_max: int
    group_size: int | None
    scale_dtype: str
    signed_scale: bool
    summary: str

    def groups(self, in_features: int) -> int:
        """Number of scales of a row of `in_features` weights. Raises GridError on a misfit."""
        reason = self.refuses(in_features)
        if reason:
            raise GridError(reason)
        return 1 if self.group_size is None else in_features // self.group_size

    def refuses(self, in_features: int) -> str | None:
        """Why rows of `in_features` weights do not fit this grid, or None when they do."""
        if self.group_size is None or in_features % self.group_size == 0:
            return None
        return (
            f"{in_features} inputs are not a multiple of the {self.group_size} weights "
            f"that share a scale in {self.name}"
        )

    def bits_per_weight(self, in_features: int) -> float:
        """Bits per weight of a row of `in_features` weights, its scales included."""
        scale_bits = {"float16": 16, "float32": 32}[self.scale_dtype]
        return self.bits + scale_bits * self.groups(in_features) / in_features


_ROWS = (
    Grid("q4_0", 4, -8, 7, 32, "float16", True, "4 bits, groups of 32, as llama.cpp's Q4_0"),
    # -127, not -128: the range llama.cpp's own quantiser writes, and so the one every backend's
    # kernels are tested on.
    Grid("q8_0", 8, -127, 127, 32, "float16", False, "8 bits, groups of 32, as llama.cpp's Q8_0"),
    Grid("int4-g128", 4, -8, 7, 128, "float16", False, "4 bits, groups of 128"),
    Grid("int4-channel", 4, -8, 7, None, "float16", False, "4 bits, one scale per output row"),
)

GRIDS: dict[str, Grid] = {grid.name: grid for grid in _ROWS}


def find_grid(name: str) -> Grid:
    """The grid called `name` (case does not matter). Raises GridError naming the nearest ones."""
    grid = GRIDS.get(name.lower())
    if grid:
        return grid
    near = difflib.get_close_matches(name.lower(), GRIDS, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise GridError(f"unknown grid {name!r}: {hint}known grids are {', '.join(GRIDS)}")
