"""GGUF files in, and back byte for byte."""

import importlib
import json

import numpy as np
import pytest

from exporters import gguf
from exporters.gguf.file.shards import read_model
from lrqat.checkpoint.reader import Checkpoint
from lrqat.cli import inspect
from lrqat.importing.run import import_model
from tests.support.gguf_bases import gguf_of
from tests.support.imported import by_gguf, folder_of

command = importlib.import_module("lrqat.cli.import")


@pytest.mark.parametrize(
    ("config", "grid"),
    [("llama", "q4_0"), ("llama, tied", "q4_1"), ("qwen2", "q5_0"), ("gemma3", "q8_0"),
     ("qwen3", "iq4_nl"), ("llama, biases", "mxfp4")],
)  # fmt: skip
def test_a_file_comes_back_byte_for_byte(config, grid, tmp_path):
    first, path = gguf_of(config, tmp_path, grid=grid)
    report = import_model(str(path), tmp_path / "imported")
    checkpoint = Checkpoint.open(tmp_path / "imported")
    for name in first.quantized_names:
        assert np.array_equal(checkpoint.quantized(name).q, first.quantized(name).q), name
        assert np.array_equal(checkpoint.scales(name).scale, first.scales(name).scale), name
    assert report.inexact == []
    again = tmp_path / "again.gguf"
    gguf.write(gguf.plan(checkpoint), again, workers=1)
    one, other = read_model(path).tensors, read_model(again).tensors
    assert one.keys() == other.keys()
    for name, info in one.items():
        assert info.type_name == other[name].type_name, name
        assert np.array_equal(info.read(), other[name].read()), name


def test_the_command_imports_and_inspect_tells_the_grids(tmp_path, capfd):
    folder = folder_of(tmp_path / "source", lambda name, v: {"weight": by_gguf(v, "q4_0")[1]})
    assert inspect.main([str(folder), "--json"]) == 0
    looked = json.loads(capfd.readouterr().out)
    grids = {each["name"]: each["grid"] for each in looked["tensors"]}
    assert sorted(filter(None, grids.values())) == ["q4_0"] * 14
    assert looked["path"] == ""
    arguments = [str(folder), "--output", str(tmp_path / "out")]
    assert command.main([*arguments, "--json"]) == 0
    made = json.loads(capfd.readouterr().out)
    assert made["tensors"] == looked["tensors"]
    assert Checkpoint.open(tmp_path / "out").grids == {"q4_0"}
    assert command.main([*arguments, "--overwrite"]) == 0
    assert "14 of 16 tensors on a grid" in capfd.readouterr().out
