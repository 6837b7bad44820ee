import pytest

from lrqat.errors import GridError
from lrqat.grid import GRIDS, find_grid


def test_every_grid_is_consistent():
    for name, grid in GRIDS.items():
        assert grid.name == name == name.lower()
        assert -(2 ** (grid.bits - 1)) <= grid.q_min < 0 < grid.q_max < 2 ** (grid.bits - 1)
        assert grid.summary


def test_bits_per_weight_are_those_of_the_runtime_types():
    assert find_grid("q4_0").bits_per_weight(256) == 4.5
    assert find_grid("Q8_0").bits_per_weight(256) == 8.5
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
