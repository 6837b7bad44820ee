"""Tables that are written and compared some rows at a time, never whole in memory."""

import io
import sys
import tracemalloc
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from exporters import onnx as exporter
from exporters.onnx.passes.attach_weights import WeightOnDisk
from exporters.onnx.planning import PlannedTensor
from exporters.onnx.weights import initializers as weights
from lrqat.checkpoint.reader import Checkpoint

FLOAT, FLOAT16 = ir.DataType.FLOAT, ir.DataType.FLOAT16
ROWS, COLUMNS = 2003, 500  # 4 MB of float32


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(weights, "_PIECE", 1 << 14)


class Sink(io.RawIOBase):
    """A file of which only the sum and the number of bytes stay."""

    def __init__(self):
        self.count, self.sum = 0, 0

    def write(self, data):
        self.count += len(data)
        self.sum += int(np.frombuffer(data, np.uint8).sum())


def table_of(dtype=ml_dtypes.bfloat16):
    return np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(dtype)


def holder(table):
    """Something that gives out a table, or rows of it, as a checkpoint does."""
    return SimpleNamespace(
        shape=lambda name: table.shape,
        floating=lambda name, rows=slice(None): table[rows].copy(),
    )


@pytest.mark.parametrize("dtype", [FLOAT, FLOAT16])
@pytest.mark.parametrize("form", ["float", "linear"])
def test_pieces_are_the_table_in_the_order_of_the_file(form, dtype, small_pieces):
    table = table_of()
    found = list(weights.pieces(form, holder(table), "x", dtype))
    assert len(found) > 50
    assert all(piece.flags.c_contiguous for piece in found)
    expected = (table.T if form == "linear" else table).astype(dtype.numpy())
    assert np.array_equal(np.concatenate(found), expected)
    assert np.array_equal(weights.stored(form, holder(table), "x", dtype), expected)


@pytest.mark.parametrize(("form", "most"), [("float", 0.1), ("linear", 0.6)])
def test_writing_holds_a_piece_in_memory(form, most, small_pieces):
    """A transposed table is read whole, in the two bytes a number that it is stored in."""
    table = table_of()
    shape = table.shape[:: -1 if form == "linear" else 1]
    planned = PlannedTensor("x", form, "x", FLOAT, shape)
    sink, read = Sink(), []
    tensor = WeightOnDisk(planned, holder(table), read.append)
    tracemalloc.start()
    tensor.tofile(sink)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    whole = tensor.tobytes()
    assert sink.count == len(whole) == table.size * 4
    assert sink.sum == np.frombuffer(whole, np.uint8).sum()
    assert peak < most * sink.count
    assert read == ["x", "x"]


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "lm_head.weight"])
def test_comparing_counts_what_differs_in_any_piece(
    name, onnx_folder, fused_checkpoint, small_pieces, monkeypatch
):
    """The pieces of the checkpoint, a number of the first and of the last one changed."""
    checkpoint = Checkpoint.open(fused_checkpoint)
    assert not any(exporter.verify(onnx_folder("q4_0"), checkpoint).values())
    verify = sys.modules["exporters.onnx.verification"]
    original = verify.pieces

    def changed(form, checkpoint, source, dtype):
        found = list(original(form, checkpoint, source, dtype))
        if source == name:
            assert len(found) > 1
            found[0].flat[0] += 1
            found[-1].flat[-1] += 1
        return iter(found)

    monkeypatch.setattr(verify, "pieces", changed)
    counts = exporter.verify(onnx_folder("q4_0"), checkpoint)
    assert {found: count for found, count in counts.items() if count} == {name: 2}
