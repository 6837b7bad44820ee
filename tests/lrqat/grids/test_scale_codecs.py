"""Codecs whose numbers are not simply those of a float type."""

import ml_dtypes
import numpy as np
import pytest
import torch

from lrqat.grids.grid import GRIDS
from lrqat.grids.quantize import stored_scale
from lrqat.grids.scale_codecs import tensor_and_groups, two_levels
from lrqat.init import range_init
from lrqat.init.range_init import find_scales


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_8_bit_floats_are_the_nearest_of_the_type_beside_the_largest(dtype):
    values = torch.logspace(-9, 1, 4096, dtype=dtype).view(64, 64)
    tensor_scale, of_groups = tensor_and_groups(values)
    assert tensor_scale.shape == (1, 1)
    assert np.frexp(tensor_scale.item())[0] == 0.5
    assert 224 < of_groups.max() <= 448
    exact = (values / tensor_scale).numpy()
    nearest = exact.astype(ml_dtypes.float8_e4m3fn).astype(exact.dtype)
    assert np.array_equal(of_groups.numpy(), np.maximum(nearest, 2**-9))


@pytest.mark.parametrize("largest", [224.0, 231.9, 232.1, 447.0, 448.0, 449.0, 463.0, 480.0, 1e-30])
def test_8_bit_floats_stay_what_they_are_wherever_the_largest_is(largest):
    grid, rng = GRIDS["nvfp4"], torch.Generator().manual_seed(0)
    values = largest * torch.rand(8, 16, generator=rng).pow(6)
    values[3, 5] = largest
    once = stored_scale(values, grid, 256)
    assert torch.equal(stored_scale(once, grid, 256), once)
    assert torch.isfinite(once).all()


def test_rows_that_are_searched_apart_share_the_scale_of_the_tensor(monkeypatch):
    torch.manual_seed(0)
    weight, grid = torch.randn(12, 64) * torch.logspace(-8, 0, 12)[:, None], GRIDS["nvfp4"]
    together = find_scales(weight, grid, "l2").scale
    monkeypatch.setattr(range_init, "_CHUNK_WEIGHTS", 128)
    apart = find_scales(weight, grid, "l2").scale
    assert torch.equal(apart[-2:], together[-2:])
    tensor_scale, _ = tensor_and_groups(apart)
    smallest = tensor_scale * 2**-9
    assert torch.equal((apart / smallest).round() * smallest, apart)
