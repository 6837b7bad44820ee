"""The grids: which values a weight may take, and how the numbers that scale them are stored.

A weight is `scale * q - offset`, with `q` an integer of the grid and one scale (and offset) for
`group_size` consecutive inputs of a row, or for the whole row. The offset is

    nothing                symmetric grids
    scale * zero_point     asymmetric grids, `zero_point` an integer of the grid (ONNX)
    minimum                a floating number of its own (llama.cpp's Q4_1 and K-quants)

`q` is any integer from q_min to q_max, or, on a codebook grid, one of `levels`. Training rounds
scales and minima to what the file can store inside the forward pass, so what is optimised is what
ships; how they are stored is the grid's `scale` and `minimum`.

A grid is named after the llama.cpp type that holds it exactly, or after itself. This table is the
only one: tools, exporters and documentation read it. Adding a grid is adding a row.
"""

from dataclasses import dataclass
from functools import cached_property

from lrqat.errors import GridError, did_you_mean


@dataclass(frozen=True)
class FloatScale:
    """One number of the numpy type `dtype` for each group."""

    dtype: str = "float16"

    def bits(self, group_size: int) -> float:
        """Bits that a group of `group_size` weights spends on it."""
        return {"float16": 16, "float32": 32}[self.dtype]


@dataclass(frozen=True)
class PowerOfTwoScale:
    """A power of two for each group, its exponent in 8 bits (E8M0 of the OCP MX formats)."""

    def bits(self, group_size: int) -> float:
        """Bits that a group of `group_size` weights spends on it."""
        return 8


@dataclass(frozen=True)
class Float8Scale:
    """An 8-bit float without sign (UE4M3) for each group, times a power of two for the tensor.

    NVIDIA's tensors have any float32 there; with a power of two every product is exact, and so is
    its reciprocal. The largest scale of the tensor decides on it.
    """

    def bits(self, group_size: int) -> float:
        """Bits that a group of `group_size` weights spends on it."""
        return 8


@dataclass(frozen=True)
class TwoLevelScale:
    """A float16 number for each super-block of weights, times a small integer for each group.

    Attributes:
        least: smallest sub-scale.
        most: largest sub-scale.
        sub_bits: bits of a sub-scale.
        super_block: weights that share the float16 number (llama.cpp's QK_K).
        times: 1 to this many times the float16 number are float16 numbers, too, for types that
            store such a multiple.
    """

    least: int
    most: int
    sub_bits: int
    super_block: int = 256
    times: int = 1

    def bits(self, group_size: int) -> float:
        """Bits that a group of `group_size` weights spends on it."""
        return self.sub_bits + 16 * group_size / self.super_block


ScaleCodec = FloatScale | PowerOfTwoScale | Float8Scale | TwoLevelScale


@dataclass(frozen=True)
class Grid:
    """One row of the table.

    Attributes:
        name: what `--grid` takes.
        bits: width of a stored code.
        q_min: smallest integer.
        q_max: largest integer.
        group_size: consecutive inputs that share a scale; None: the whole row (per channel).
        summary: one line for `--help` and the documentation.
        scale: how the scale is stored.
        signed_scale: whether a scale may be negative. With the full range -2^(b-1)..2^(b-1)-1 a
            negative scale puts the extra level on the side of the largest weight (the signed-max
            rule of llama.cpp's Q4_0, ggml-quants.c `quantize_row_q4_0_ref`).
        zero_point: whether each group has an integer zero-point.
        minimum: how the minimum of each group is stored, or None where there is none.
        levels: the integers of a codebook grid in rising order; None: all from q_min to q_max.
        packed_bits: bits per weight of the codes, where they are packed tighter than `bits` or
            beside numbers that say nothing new.
    """

    name: str
    bits: int
    q_min: int
    q_max: int
    group_size: int | None
    summary: str
    scale: ScaleCodec = FloatScale()
    signed_scale: bool = False
    zero_point: bool = False
    minimum: ScaleCodec | None = None
    levels: tuple[int, ...] | None = None
    packed_bits: float | None = None

    @cached_property
    def step(self) -> float:
        """Mean distance of neighbouring integers: 1, but for codebooks."""
        return (self.q_max - self.q_min) / (len(self.levels) - 1) if self.levels else 1.0

    @property
    def symmetric(self) -> bool:
        """Whether weights are scale * q and nothing else."""
        return self.minimum is None and not self.zero_point

    @property
    def block(self) -> int | None:
        """Inputs that a row must be a multiple of; None: any number fits."""
        blocks = [c.super_block for c in (self.scale, self.minimum) if isinstance(c, TwoLevelScale)]
        return max(blocks, default=self.group_size)

    def groups(self, in_features: int) -> int:
        """Number of scales of a row of `in_features` weights. Raises GridError on a misfit."""
        reason = self.refuses(in_features)
        if reason:
            raise GridError(reason)
        return 1 if self.group_size is None else in_features // self.group_size

    def refuses(self, in_features: int) -> str | None:
        """Why rows of `in_features` weights do not fit this grid, or None when they do."""
        if self.block is None or in_features % self.block == 0:
            return None
        return (
            f"{in_features} inputs are not a multiple of the {self.block} weights "
            f"that share a scale in {self.name}"
        )

    def bits_per_weight(self, in_features: int) -> float:
        """Bits per weight of a row of `in_features` weights, scales and offsets included."""
        size = in_features // self.groups(in_features)
        spent = self.scale.bits(size) + (self.bits if self.zero_point else 0)
        if self.minimum:
            spent += self.minimum.bits(size)
        return (self.packed_bits or self.bits) + spent / size


# ggml-common.h `kvalues_iq4nl`.
_IQ4_NL = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# E2M1 times two (ggml-common.h `kvalues_mxfp4`); the shared power of two is halved to match.
_MXFP4 = (-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12)
# Halves of odd numbers, times two, so that they are integers.
_CENTRED = (-3, -1, 1, 3)
_WIDTHS = (2, 3, 4, 5, 6, 8)
_GROUPS = (16, 32, 64, 128, 256, None)


def _full_range(bits: int) -> tuple[int, int]:
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def _symmetric(bits: int, group_size: int | None) -> Grid:
    size = "channel" if group_size is None else f"g{group_size}"
    shared = "one scale per output row" if group_size is None else f"groups of {group_size}"
    summary = f"{bits} bits, {shared}"
    return Grid(
        f"int{bits}-{size}", bits, *_full_range(bits), group_size, summary, signed_scale=True
    )


def _asymmetric(bits: int, group_size: int | None) -> Grid:
    like = _symmetric(bits, group_size)
    name = like.name.replace("-", "-asym-")
    summary = f"{like.summary}, integer zero-point"
    return Grid(name, bits, like.q_min, like.q_max, group_size, summary, zero_point=True)


_K4, _K6 = TwoLevelScale(1, 15, 4), TwoLevelScale(1, 63, 6)
_K4_MIN, _K6_MIN = TwoLevelScale(0, 15, 4), TwoLevelScale(0, 63, 6)

_LLAMA_CPP = (
    Grid("q4_0", 4, -8, 7, 32, "4 bits, groups of 32", signed_scale=True),
    Grid("q4_1", 4, 0, 15, 32, "4 bits, minimum, groups of 32", minimum=FloatScale()),
    Grid("q5_0", 5, -16, 15, 32, "5 bits, groups of 32", signed_scale=True),
    Grid("q5_1", 5, 0, 31, 32, "5 bits, minimum, groups of 32", minimum=FloatScale()),
    # -127, not -128: the range llama.cpp's own quantiser writes, and so the one every backend's
    # kernels are tested on.
    Grid("q8_0", 8, -127, 127, 32, "8 bits, groups of 32"),
    Grid("q1_0", 1, -1, 1, 128, "signs, groups of 128", levels=(-1, 1)),
    Grid("q2_0", 2, -2, 1, 64, "2 bits, groups of 64", signed_scale=True),
    Grid("q2_k", 2, 0, 3, 16, "2 bits, two-level scales and minima", _K4, minimum=_K4_MIN),
    # Q2_K with every minimum 1.5 times its scale, so that the values lie around zero. The minima
    # take as many bits as the scales.
    Grid("q2_k-sym", 2, -3, 3, 16, "2 bits around zero (-3/2, -1/2, 1/2, 3/2), two-level scales",
         TwoLevelScale(1, 15, 4, times=3), levels=_CENTRED, packed_bits=2.3125),
    Grid(
        "q3_k", 3, -4, 3, 16, "3 bits, two-level scales", TwoLevelScale(-32, 31, 6),
        signed_scale=True,
    ),
    Grid("q4_k", 4, 0, 15, 32, "4 bits, two-level scales and minima", _K6, minimum=_K6_MIN),
    Grid("q5_k", 5, 0, 31, 32, "5 bits, two-level scales and minima", _K6, minimum=_K6_MIN),
    Grid(
        "q6_k", 6, -32, 31, 16, "6 bits, two-level scales", TwoLevelScale(-128, 127, 8),
        signed_scale=True,
    ),
    Grid("tq1_0", 2, -1, 1, 256, "ternary, five weights a byte", packed_bits=1.625),
    Grid("tq2_0", 2, -1, 1, 256, "ternary, four weights a byte"),
    Grid("iq4_nl", 4, -127, 113, 32, "16 uneven levels, groups of 32", signed_scale=True,
         levels=_IQ4_NL),
    Grid("iq4_xs", 4, -127, 113, 32, "16 uneven levels, two-level scales",
         TwoLevelScale(-32, 31, 6), signed_scale=True, levels=_IQ4_NL),
    Grid("mxfp4", 4, -12, 12, 32, "4-bit floats, power-of-two scales", PowerOfTwoScale(),
         levels=_MXFP4),
    Grid("nvfp4", 4, -12, 12, 16, "4-bit floats, 8-bit float scales", Float8Scale(),
         levels=_MXFP4),
)  # fmt: skip

_ROWS = (
    *_LLAMA_CPP,
    *(_symmetric(bits, size) for bits in _WIDTHS for size in _GROUPS),
    *(_asymmetric(bits, size) for bits in _WIDTHS for size in _GROUPS),
)

GRIDS: dict[str, Grid] = {grid.name: grid for grid in _ROWS}


_SIZES = "|".join([*(f"g{size}" for size in _GROUPS if size), "channel"])
_PATTERNS = {
    f"int{{{'|'.join(map(str, _WIDTHS))}}}{kind}-{{{_SIZES}}}": summary
    for kind, summary in (("", "symmetric"), ("-asym", "integer zero-point"))
}


def grid_families() -> list[str]:
    """The table in few lines, for `--help`: llama.cpp's types one by one, then the patterns."""
    named = [f"{grid.name}: {grid.summary}, as in llama.cpp" for grid in _LLAMA_CPP]
    return named + [f"{pattern}: {summary}" for pattern, summary in _PATTERNS.items()]


def find_grid(name: str) -> Grid:
    """The grid called `name` (case does not matter). Raises GridError naming the nearest ones."""
    grid = GRIDS.get(name.lower())
    if grid:
        return grid
    hint = did_you_mean(name, GRIDS)
    known = ", ".join([*(grid.name for grid in _LLAMA_CPP), *_PATTERNS])
    raise GridError(f"unknown grid {name!r}: {hint}known grids are {known}")
