"""The table's row of llama.cpp on x86, against llama.cpp's own products on this processor."""

import platform

import pytest

from lrqat.doctor.speed import is_plain_c, kernels
from lrqat.grids.backends import BACKENDS, Speed


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the row is of x86")
def test_types_that_are_called_slow_are_those_in_plain_c() -> None:
    row = BACKENDS["cpu"]
    types = [name for name in (*row.fast, *row.slow) if name != "q2_k-sym"]
    measured = kernels(types)
    assert measured.keys() == set(types)
    assert {n for n in types if is_plain_c(n, measured)} == {
        name for name in types if row.speed_of(name) == Speed.SLOW
    }
