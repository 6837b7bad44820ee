"""Unquantized numbers: finite, and as float32 without loss, or no export."""

import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from exporters import gguf, onnx
from exporters.floating import as_float32
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import CheckpointError, ModelError
from lrqat.models.reference import load_reference

NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_what_float32_holds_is_kept(dtype):
    stored = np.array([[1.5, -2.0], [0.25, 3.0]], dtype)
    found = as_float32("x", stored)
    assert found.dtype == np.float32
    assert np.array_equal(found.astype(dtype), stored)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (np.array([1.0, np.nan], np.float32), "NaN"),
        (np.array([1.0, np.inf], ml_dtypes.bfloat16), "NaN or infinite"),
        (np.array([0.1]), "float64 values that float32 rounds"),
        (np.array([1e300]), "float64 values that float32 rounds"),
        (np.array([1, 2]), "int64"),
    ],
)
def test_what_it_does_not_hold_is_refused(stored, said):
    with pytest.raises(CheckpointError, match=said):
        as_float32("x", stored)


@pytest.fixture
def altered(make_fused, tmp_path):
    """Function of a change to one norm -> the checkpoint with it."""

    def make(change):
        copy = shutil.copytree(make_fused("q4_0"), tmp_path / "altered")
        tensors = load_file(copy / "model.safetensors")
        tensors[NORM] = change(tensors[NORM])
        save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
        return Checkpoint.open(copy, verify=False)

    return make


def _with_nan(norm):
    return np.where(np.arange(norm.size) == 3, np.float32(np.nan), norm)


@pytest.mark.parametrize(("package", "name"), [(gguf, "model.gguf"), (onnx, "onnx")])
def test_no_exporter_writes_nan(altered, tmp_path, package, name):
    checkpoint = altered(_with_nan)
    with pytest.raises(CheckpointError, match=f"{NORM} holds NaN"):
        package.write(package.plan(checkpoint), tmp_path / name)
    assert not (tmp_path / name).exists()
    with pytest.raises(ModelError, match=f"{NORM} holds NaN"):
        load_reference(checkpoint)


def test_float64_is_exported_where_it_is_exact(altered, tmp_path):
    checkpoint = altered(lambda norm: norm.astype(np.float64))
    gguf.write(gguf.plan(checkpoint), tmp_path / "model.gguf")
    assert not any(gguf.verify(tmp_path / "model.gguf", checkpoint).values())


def test_float64_that_would_be_rounded_is_not(altered, tmp_path):
    checkpoint = altered(lambda norm: norm.astype(np.float64) + 1e-12)
    with pytest.raises(CheckpointError, match="float64 values"):
        gguf.write(gguf.plan(checkpoint), tmp_path / "model.gguf")
