"""The table of docs/gguf-types.md is what the code says."""

from pathlib import Path

import pytest

from exporters.gguf.blocks import bits_per_weight, integer_blocks
from exporters.gguf.selection import exact_types
from lrqat.grid import GRIDS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "gguf-types.md"
SIZES = ("g16", "g32", "g64", "g128", "g256", "channel")


def spans(name, kind):
    """The integer grids of one kind that a type holds: "2-4 from g32, 5 from g256"."""
    held: dict[str, list[int]] = {}
    for bits in (2, 3, 4, 5, 6, 8):
        sizes = [s for s in SIZES if name in exact_types(GRIDS[f"int{bits}{kind}-{s}"], 256)]
        assert sizes == list(SIZES[len(SIZES) - len(sizes) :])  # larger groups fit where smaller do
        if sizes:
            held.setdefault(sizes[0], []).append(bits)
    return ", ".join(f"{', '.join(map(str, bits))} from {size}" for size, bits in held.items())


def row(name):
    block = integer_blocks()[name]
    named = [f"`{g}`" for g in GRIDS if "-" not in g and name in exact_types(GRIDS[g], 256)]
    cells = [
        f"`{name}`",
        f"{bits_per_weight(block):g}",
        f"{block.TYPE.weights}",
        ", ".join(named),
        spans(name, "") or "–",  # noqa: RUF001
        spans(name, "-asym") or "–",  # noqa: RUF001
        f"`{block.ACTIVATIONS}`",
    ]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("name", integer_blocks())
def test_the_row_of_a_type(name):
    assert row(name) in PAGE.read_text(encoding="utf-8").splitlines(), row(name)
