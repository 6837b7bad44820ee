"""How every grid lies in an ONNX file: types, packing against onnx and ml_dtypes, refusals."""

from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters import onnx as exporter
from exporters.onnx.weights.initializers import stored
from exporters.onnx.weights.storage import INTEGER_FORMS, product_type, refuses_grid
from lrqat.errors import ExportRefusedError
from lrqat.grids.grid import GRIDS
from tests.support.onnx_arrays import EXACT, arrays
from tests.support.random_tensors import make

WITH_MINIMA = [name for name, grid in GRIDS.items() if grid.minimum]
FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16


@pytest.mark.parametrize(
    ("name", "outputs", "dtype"),
    [
        ("q1_0", 64, "INT2"),
        ("q2_0", 64, "INT2"),
        ("tq1_0", 64, "INT2"),
        ("int2-asym-g32", 4, "INT2"),
        ("int2-channel", 66, "INT4"),  # no multiple of 4, where ONNX Runtime's fusion is wrong
        ("tq2_0", 65, "INT4"),
        ("int3-g64", 64, "INT4"),
        ("q2_k-sym", 64, "INT4"),  # odd numbers from -3 to 3
        ("q3_k", 64, "INT4"),
        ("int4-asym-channel", 33, "INT4"),
        ("int5-g32", 64, "INT8"),
        ("q6_k", 64, "INT8"),
        ("q8_0", 64, "INT8"),
        ("iq4_nl", 64, "INT8"),  # 16 levels, but of 8 bits
        ("mxfp4", 64, "INT8"),
    ],
)
def test_the_narrowest_type_that_is_right(name, outputs, dtype):
    assert product_type(GRIDS[name], outputs, two_bits=True).name == dtype
    wider = product_type(GRIDS[name], outputs, two_bits=False).name
    assert wider == ("INT4" if dtype == "INT2" else dtype)


@pytest.mark.parametrize("grid", EXACT, ids=lambda grid: grid.name)
@pytest.mark.parametrize(("integers", "middle"), [("signed", 0), ("unsigned", 0.5)])
def test_the_narrowest_type_is_the_first_of_onnxs_that_reaches_the_grids_integers(
    integers, middle, grid
):
    def holds(dtype):
        info = ml_dtypes.iinfo(dtype.numpy())
        start = info.min - middle * 2**dtype.bitwidth
        return start <= grid.q_min and grid.q_max <= start + info.max - info.min

    fitting = next(dtype for dtype in INTEGER_FORMS[integers].types if holds(dtype))
    assert product_type(grid, 64, two_bits=True, integers=integers) == fitting


@pytest.mark.parametrize("grid", EXACT, ids=lambda grid: grid.name)
def test_unsigned_types_are_as_wide_as_signed_ones(grid):
    signed, unsigned = (
        product_type(grid, 64, two_bits=False, integers=integers) for integers in INTEGER_FORMS
    )
    assert unsigned.name == f"U{signed.name}"


@pytest.mark.parametrize("name", WITH_MINIMA)
def test_a_floating_minimum_is_refused_with_the_grid_to_train_on_instead(name, make_small):
    plan = exporter.plan(make_small(name))
    assert len(plan.refusals) == 7
    better = plan.refusals[0].partition("train on ")[2].partition(",")[0]
    assert GRIDS[better].bits == GRIDS[name].bits
    assert GRIDS[better].group_size == GRIDS[name].group_size
    assert refuses_grid(GRIDS[better], FLOAT) is None


@pytest.mark.parametrize("grid", EXACT, ids=lambda grid: grid.name)
def test_every_other_grid_has_a_form(grid):
    assert refuses_grid(grid, FLOAT) is None
    reason = refuses_grid(grid, FLOAT16)
    if reason:  # products of two levels, and powers of two that float16 does not reach
        assert (
            refuses_grid(GRIDS[reason.rpartition("train on ")[2].partition(",")[0]], FLOAT) is None
        )
        assert grid.name in ("q2_k-sym", "q3_k", "q6_k", "iq4_xs", "mxfp4", "nvfp4")


@settings(max_examples=60, deadline=None)
@given(
    grid=st.sampled_from(EXACT),
    rows=st.integers(1, 9),
    groups=st.integers(1, 2),
    odd=st.sampled_from([24, 48, 512]),
    form=st.sampled_from([(True, "signed"), (False, "signed"), (False, "unsigned")]),
)
def test_the_bytes_are_what_onnx_packs_and_mean_what_was_trained(grid, rows, groups, odd, form):
    columns = (grid.block or odd) * groups
    tensor = make(grid, rows, columns, seed=rows)
    chosen, found = arrays(tensor, *form)
    octets = [
        ir.Tensor(array, dtype=ir.DataType.from_numpy(array.dtype)).tobytes() for array in found
    ]
    for array, data in zip(found, octets, strict=True):
        assert data == onnx.numpy_helper.from_array(array).raw_data
    middle = 0 if form[1] == "signed" else 1 << chosen.bitwidth - 1
    assert octets[0] == by_hand(tensor.q.T.astype(np.int16) + middle, chosen.bitwidth)
    q, scale, *zero = (array.astype(np.float32) for array in found)
    q -= spread(zero[0], columns) if zero else 0
    assert np.array_equal((q * spread(scale, columns)).T, tensor.dequantize())


def by_hand(q, bits):
    """Bytes of integers in row order, the lowest bits first."""
    codes = q.astype(np.uint8).reshape(-1) & ((1 << bits) - 1)
    per_byte = 8 // bits
    codes = np.pad(codes, (0, -len(codes) % per_byte)).reshape(-1, per_byte)
    return sum(codes[:, i] << (i * bits) for i in range(per_byte)).astype(np.uint8).tobytes()


def spread(part, rows):
    """[groups, N] or [N] to [K, N]."""
    return part[None] if part.ndim == 1 else part.repeat(rows // len(part), 0)


def test_what_float16_does_not_reach_is_refused():
    values = np.array([1.0, 70000.0], ml_dtypes.bfloat16)
    checkpoint = SimpleNamespace(floating=lambda name, rows: values, shape=lambda name: (2,))
    with pytest.raises(ExportRefusedError, match=r"x has .* beyond the largest of float16"):
        stored("float", checkpoint, "x", FLOAT16)
    assert stored("float", checkpoint, "x", FLOAT)[1] == np.float32(ml_dtypes.bfloat16(70000.0))
