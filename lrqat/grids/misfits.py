"""What a row that does not fit its grid gets instead: the next grid, never floating point.

llama.cpp's K-quants want rows of a multiple of 256 weights, and most small models are narrower or
between: SmolLM2-135M has 576, Gemma 3 270M 640, Qwen2.5-0.5B 896. For each grid that asks much of
a row there is one to go to, which asks less: the one of about the same size, or where there is none
the next larger one. `q4_k` goes to `q4_0`, which every back-end runs fast; `iq4_nl`, of the same
size, loses a sixth less (docs/gguf-types.md has the errors of both). Widths that nothing in a chain
fits (100, say, on llama.cpp's types, whose smallest block has 32) are left unquantized by whoever
asks.
"""

from collections.abc import Iterator
from itertools import pairwise

from lrqat.errors import UserError
from lrqat.grids.grid import GRIDS, Grid

NEXT, KEEP, REFUSE = "next", "keep", "refuse"
MISFIT_CHOICES = {
    NEXT: "they go on the next grid that they fit",
    KEEP: "they stay unquantized",
    REFUSE: "the run is refused",
}

_NEXT = {
    "q1_0": "q2_0", "tq1_0": "q2_0", "tq2_0": "q2_0", "q2_k": "q2_0", "q2_0": "q4_0",
    "q3_k": "q4_0", "iq4_xs": "iq4_nl", "q4_k": "q4_0", "q5_k": "q5_0",
    "q6_k": "q8_0",
}  # fmt: skip


def _of_integers() -> Iterator[tuple[str, str]]:
    """intB-g256 to g128 and so on down to g16, and from there to one scale a row."""
    families: dict[str, list[Grid]] = {}
    for grid in GRIDS.values():
        family, dash, _ = grid.name.rpartition("-")
        if dash and family.startswith("int"):
            families.setdefault(family, []).append(grid)
    for grids in families.values():
        ordered = sorted(grids, key=lambda grid: -(grid.group_size or 0))
        for wide, narrow in pairwise(ordered):
            yield wide.name, narrow.name


_NEXT |= dict(_of_integers())


def chain(grid: Grid) -> Iterator[Grid]:
    """`grid`, and what a row that does not fit goes to, in order."""
    name: str | None = grid.name
    while name is not None:
        yield GRIDS[name]
        name = _NEXT.get(name)


def fitting(grid: Grid, in_features: int) -> Grid | None:
    """The first of `chain(grid)` that rows of `in_features` weights fit, or None."""
    return next((each for each in chain(grid) if not each.refuses(in_features)), None)


def refused(name: str, reason: str, instead: Grid | None) -> UserError:
    """What `--misfit refuse` says of a module that does not fit its grid."""
    cure = f"give it another grid with --grid-for, as {instead.name}" if instead else "--keep it"
    return UserError(f"{name}: {reason}, and --misfit refuse is asked for; {cure}")
