"""Scales whose parts have to agree with one another: what a writer with a fault would leave."""

import numpy as np
import pytest

from lrqat.checkpoint.stored_scales import PARTS, read_scales
from lrqat.errors import CheckpointError
from lrqat.grids.grid import GRIDS
from tests.support.random_tensors import make


def tensors(grid):
    """What a checkpoint has of the scales of a weight (4, 256), by part."""
    found = make(GRIDS[grid], 4, 256).scales
    parts = {part: getattr(found, part) for part in PARTS}
    return {part: values for part, values in parts.items() if values is not None}


def read(parts, grid):
    named = {f"x{PARTS[part]}": values for part, values in parts.items()}
    return read_scales(named.__getitem__, "x", GRIDS[grid], 4, 256)


@pytest.mark.parametrize("grid", GRIDS)
def test_what_a_grid_has_is_read(grid):
    parts = tensors(grid)
    found = read(parts, grid)
    for part in PARTS:
        values = getattr(found, part)
        assert values is None if part not in parts else np.array_equal(values, parts[part])


def one_row(values):
    return values * np.array([[1], [1], [2], [1]], np.float32)


def ten_bits(values):
    """Float16 numbers, whose threefold is none."""
    return values * np.float32(1023 / 1024)


@pytest.mark.parametrize(
    ("grid", "change", "said"),
    [
        ("nvfp4", {"tensor_scale": lambda t: t * 3}, "no powers of two"),
        ("nvfp4", {"tensor_scale": lambda t: t * 0}, "no powers of two"),
        ("nvfp4", {"tensor_scale": lambda t: t * 2.0**40}, "no 8-bit floats"),
        ("nvfp4", {"tensor_scale": lambda t: t[:, [0, 0]]}, "tensor scales have shape"),
        ("nvfp4", {"scale": lambda s: s * np.float32(1.01)}, "no 8-bit floats"),
        ("nvfp4", {"scale": one_row, "tensor_scale": one_row}, "one tensor scale"),
        ("nvfp4", {"scale": np.negative}, "negative"),
        ("q2_k-sym", dict.fromkeys(("super_scale", "scale"), ten_bits), "not exact in float16"),
        ("q2_k-sym", {"sub_scale": lambda s: s % 15 + 1}, "two levels"),
        ("iq4_xs", {"sub_scale": np.negative}, "two levels"),
    ],
)
def test_parts_that_do_not_agree_are_refused(grid, change, said):
    parts = tensors(grid)
    if grid == "q2_k-sym":  # whatever was drawn
        parts["super_scale"] = np.ones_like(parts["super_scale"])
        parts["scale"] = parts["sub_scale"].astype(np.float32)
    for part, function in change.items():
        parts[part] = function(parts[part])
    with pytest.raises(CheckpointError, match=said):
        read(parts, grid)
