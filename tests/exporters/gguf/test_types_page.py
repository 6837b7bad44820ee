"""The tables of types in docs/gguf-types.md are what the code says."""

import pytest

from exporters.gguf.blocks import bits_per_weight, float_blocks, integer_blocks
from exporters.gguf.tensors.selection import exact_types
from lrqat.grids.grid import GRIDS
from tests.support.ggml_decoders import NOT_IN_GGUF_PY
from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "gguf-types.md"
KINDS = ("", "-asym")
NAMED = [name for name in GRIDS if not name.startswith("int")]
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
    named = [f"`{g}`" for g in NAMED if name in exact_types(GRIDS[g], 256)]
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


def short_row(name):
    block = integer_blocks()[name]
    named = " ".join(f"`{g}`" for g in NAMED if name in exact_types(GRIDS[g], 256))
    held = [named, *(f"`int{kind}` {spans(name, kind)}" for kind in KINDS if spans(name, kind))]
    oracles = ["llama.cpp"]
    if name not in NOT_IN_GGUF_PY:
        oracles.insert(0, "gguf-py")
    cells = [f"`{name}`", f"{bits_per_weight(block):g}", "; ".join(held), ", ".join(oracles)]
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("name", integer_blocks())
def test_the_short_row_of_a_type(name):
    assert short_row(name) in PAGE.read_text(encoding="utf-8").splitlines(), short_row(name)


def test_the_short_table_lists_no_other_type():
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    start = lines.index("| `--type` | bits per weight | exact for | equal to |") + 2
    end = lines.index("", start)
    floats = f"| {', '.join(f'`{name}`' for name in float_blocks())} |"
    assert [line.split("|")[1].strip(" `") for line in lines[start : end - 1]] == [
        *integer_blocks()
    ]
    assert lines[end - 1].startswith(floats)
