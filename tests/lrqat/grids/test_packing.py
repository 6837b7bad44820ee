import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32, unpack_from_int32
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lrqat.grids.grid import GRIDS
from lrqat.grids.packing import (
    CONTAINER_BITS,
    container_bits,
    containers,
    pack_rows,
    unpack_rows,
)


@st.composite
def integers_of(draw):
    bits = draw(st.sampled_from(CONTAINER_BITS))
    shape = (draw(st.integers(1, 5)), draw(st.integers(1, 70)))
    elements = st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return bits, draw(hnp.arrays(np.int8, shape, elements=elements))


@settings(max_examples=200, deadline=None)
@given(integers_of())
def test_packing_is_the_librarys_and_comes_back(case):
    bits, q = case
    packed = pack_rows(q, bits)
    assert np.array_equal(packed, pack_to_int32(torch.from_numpy(q), bits).numpy())
    assert np.array_equal(unpack_rows(packed, bits, q.shape[1]), q)
    theirs = unpack_from_int32(torch.from_numpy(packed.copy()), bits, torch.Size(q.shape))
    assert np.array_equal(theirs.numpy(), q)


def test_containers_are_the_ones_that_never_changed_layout():
    assert [container_bits(bits) for bits in range(2, 9)] == [2, 4, 4, 8, 8, 8, 8]
    with pytest.raises(ValueError, match="9-bit"):
        container_bits(9)


@pytest.mark.parametrize("grid", GRIDS.values(), ids=lambda grid: grid.name)
def test_containers_of_a_grid_are_those_that_pack_its_integers(grid):
    ends = np.array([[grid.q_min, grid.q_max]], np.int8)
    found = containers(grid)
    assert list(found) == sorted(found)
    for bits in CONTAINER_BITS:
        if bits in found:
            assert np.array_equal(unpack_rows(pack_rows(ends, bits), bits, 2), ends)
        else:
            with pytest.raises(ValueError, match="do not fit"):
                pack_rows(ends, bits)


@pytest.mark.parametrize("value", [8, -9])
def test_integers_that_do_not_fit_are_refused(value):
    with pytest.raises(ValueError, match="do not fit 4 bits"):
        pack_rows(np.full((1, 8), value, np.int8), 4)


def test_a_width_that_does_not_match_is_refused():
    with pytest.raises(ValueError, match="do not hold"):
        unpack_rows(np.zeros((2, 3), np.int32), 4, 16)
