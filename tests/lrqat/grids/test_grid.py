import gguf
import pytest

from lrqat.errors import GridError
from lrqat.grids.grid import GRIDS, find_grid


def test_every_grid_is_consistent():
    for name, grid in GRIDS.items():
        assert grid.name == name == name.lower()
        if grid.levels:
            assert grid.levels == tuple(sorted(grid.levels))
            assert (grid.q_min, grid.q_max) == (grid.levels[0], grid.levels[-1])
            assert len(grid.levels) <= 2**grid.bits
        else:
            assert grid.q_max - grid.q_min < 2**grid.bits
            assert grid.q_min <= 0 < grid.q_max
        assert grid.summary


def test_bits_per_weight_are_those_of_the_runtime_types():
    for name in ("q4_0", "q4_1", "q5_0", "q5_1", "Q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k",
                 "q1_0", "tq1_0", "tq2_0", "iq4_nl", "iq4_xs", "mxfp4", "nvfp4"):  # fmt: skip
        weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name.upper()]]
        assert find_grid(name).bits_per_weight(256) == 8 * size / weights, name
    assert find_grid("q2_k-sym").bits_per_weight(256) == find_grid("q2_k").bits_per_weight(256)
    assert find_grid("q2_0").bits_per_weight(256) == 2.25
    assert find_grid("int4-g128").bits_per_weight(256) == 4.125
    assert find_grid("int4-channel").bits_per_weight(256) == 4 + 16 / 256


def test_a_misfit_is_refused_with_both_numbers():
    assert find_grid("int4-channel").refuses(172) is None
    with pytest.raises(GridError, match=r"172 .* 32"):
        find_grid("q4_0").groups(172)


@pytest.mark.parametrize(
    ("typed", "meant"), [("q40", "q4_0"), ("int4_g128", "int4-g128"), ("q8", "q8_0")]
)
def test_an_unknown_grid_names_the_nearest(typed, meant):
    with pytest.raises(GridError, match=f"did you mean .*{meant}"):
        find_grid(typed)
