"""Codecs whose numbers are not simply those of a float type."""

import numpy as np
import torch

from lrqat.grids.grid import GRIDS
from lrqat.grids.scale_codecs import two_levels


def all_halves():
    bits = np.arange(1, 0x7C00, dtype=np.uint16)
    return bits.view(np.float16).astype(np.float32)


def super_scales(values):
    """What `q2_k-sym` makes of super-scales (n,): (n,)."""
    grid = GRIDS["q2_k-sym"]
    scales = torch.from_numpy(values)[:, None].repeat(1, 16) * grid.scale.most
    return two_levels(scales, grid.scale, signed=False, group_size=16)[0][:, 0].numpy()


def test_twice_and_three_times_a_centred_super_scale_are_float16():
    found = super_scales(all_halves())
    for times in (1, 2, 3):
        multiple = found * np.float32(times)
        assert np.array_equal(multiple, multiple.astype(np.float16).astype(np.float32))


def test_a_centred_super_scale_is_within_a_512th_of_the_value_and_stays_where_it_fits():
    halves = all_halves()
    halves = halves[halves <= 2**13]
    found = super_scales(halves)
    assert (np.abs(found - halves) <= halves / 512).all()
    nine_bits = (halves.astype(np.float16).view(np.uint16) & 3) == 0
    assert np.array_equal(found[nine_bits], halves[nine_bits])
    assert (super_scales(np.array([2**-30, 0.0], np.float32)) == 2**-24).all()
    assert (super_scales(np.array([1e9, np.inf], np.float32)) == 2**13).all()
