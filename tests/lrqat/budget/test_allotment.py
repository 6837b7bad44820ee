"""The solver against all combinations, and its calibration."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrqat.budget.allotment import Choice, allot
from lrqat.budget.calibration import Calibration
from lrqat.budget.prices import Allotment
from lrqat.errors import UserError

CHOICES = st.lists(st.tuples(st.integers(1, 500), st.floats(0, 10)), min_size=1, max_size=4).map(
    lambda pairs: [Choice(str(i), n, loss) for i, (n, loss) in enumerate(pairs)]
)


@given(st.lists(CHOICES, min_size=1, max_size=5), st.integers(1, 2500))
def test_no_combination_within_the_bytes_loses_less(weights, nbytes):
    named = {f"w{i}": choices for i, choices in enumerate(weights)}
    possible = [
        sum(each.loss for each in combination)
        for combination in itertools.product(*weights)
        if sum(each.nbytes for each in combination) <= nbytes
    ]
    if not possible:
        with pytest.raises(UserError, match="ask for a larger size"):
            allot(named, nbytes)
        return
    chosen = allot(named, nbytes)
    assert list(chosen) == list(named)
    assert sum(each.nbytes for each in chosen.values()) <= nbytes
    assert sum(each.loss for each in chosen.values()) == pytest.approx(min(possible))


def test_more_bytes_than_a_table_has_cells_are_used_to_within_a_thousandth():
    bits = {"a": 2.25, "b": 4.5, "c": 8.5}
    weights = {
        f"w{i}": [
            Choice(grid, (i + 7) * int(1e5 * b), 2.0**-b * (i % 5 + 1)) for grid, b in bits.items()
        ]
        for i in range(60)
    }
    least = sum(min(c.nbytes for c in each) for each in weights.values())
    for nbytes in range(2 * least, 3 * least, least // 4):
        used = sum(each.nbytes for each in allot(weights, nbytes).values())
        assert 0.99 * nbytes <= used <= nbytes


def test_a_calibration_goes_through_its_points_and_keeps_their_factors_outside():
    points = [Allotment({}, 1, 0.1, 0.12), Allotment({}, 1, 1.0, 2.0), Allotment({}, 1, 5.0)]
    calibration = Calibration.of(points)
    assert calibration.kl(0.1) == pytest.approx(0.12)
    assert calibration.kl(1.0) == pytest.approx(2.0)
    assert calibration.kl(0.01) == pytest.approx(0.012)
    assert calibration.kl(4.0) == pytest.approx(8.0)
    assert 0.12 / 0.1 < calibration.kl(0.3) / 0.3 < 2.0
    assert Calibration().kl(0.3) == 0.3
