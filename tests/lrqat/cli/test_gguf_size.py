"""The size of a GGUF file before there is one: that of the file that is exported after the run."""

import json

import pytest

from exporters import gguf
from lrqat.checkpoint.reader import Checkpoint
from lrqat.cli import train
from lrqat.cli.gguf_size import GgufSize
from lrqat.models.small_llama import make_tokenizer
from lrqat.recipes.file_size import Nearest
from lrqat.recipes.mixtures import MIXTURES
from tests.support import zoo
from tests.support.checkpoints import TEXT

SHORT = ["--method", "rtn", "--sequence-length", "64", "--context", "64", "--eval-windows", "2"]
SHORT += ["--importance-tokens", "512"]
ASKED = {
    "recipe": ["--recipe", "Q4_K_M"],
    "unquantized": ["--embedding-grid", "none", "--head-grid", "none", "--keep", "layers.0.mlp"],
}
FURTHER = {
    "q4_0": [],
    "q2_0": ["--grid", "q2_0"],
    "minima": ["--grid", "q4_1", "--grid-for", "down_proj=q5_1"],
    "a tensor scale": ["--grid", "nvfp4"],
    "activations": ["--activations", "q8_0"],
}


def planned_and_written(model, asked, text_file, folder, capfd):
    """What `--dry-run` says of the file, and bytes of the file."""
    arguments = ["--model", str(model), "--data", str(text_file), "--output", str(folder)]
    arguments += [*SHORT, *asked]
    capfd.readouterr()
    assert train.main([*arguments, "--dry-run", "--json"]) == 0
    planned = json.loads(capfd.readouterr().out)["gguf"]
    assert train.main(arguments) == 0
    path = folder / "model.gguf"
    gguf.write(gguf.plan(Checkpoint.open(folder)), path)
    return planned, path.stat().st_size


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_the_planned_bytes_are_those_of_the_file(asked, tiny_model, text_file, tmp_path, capfd):
    planned, written = planned_and_written(tiny_model, asked, text_file, tmp_path / "run", capfd)
    assert planned["bytes"] == written
    assert planned["nearest"]["recipe"] in MIXTURES


@pytest.mark.slow
@pytest.mark.parametrize("asked", FURTHER.values(), ids=FURTHER)
def test_so_they_are_on_further_grids(asked, tiny_model, text_file, tmp_path, capfd):
    planned, written = planned_and_written(tiny_model, asked, text_file, tmp_path / "run", capfd)
    assert planned["bytes"] == written


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma3", "qwen3_moe", "gpt2", "phi3", "olmo2, tied"])
def test_so_they_are_of_other_architectures(name, text_file, tmp_path, capfd):
    folder = tmp_path / "model"
    zoo.make(name).save_pretrained(folder)
    make_tokenizer([TEXT], vocabulary=zoo.VOCABULARY).save_pretrained(folder)
    planned, written = planned_and_written(folder, [], text_file, tmp_path / "run", capfd)
    assert planned["bytes"] == written
    assert (planned["nearest"] is None) == (name == "olmo2, tied")  # whose head is there twice


def test_a_file_that_there_will_not_be_has_no_size(tiny_model, text_file, tmp_path, capfd):
    asked = ["--model", str(tiny_model), "--data", str(text_file), "--output", str(tmp_path)]
    asked += ["--grid", "int4-g16", "--dry-run", "--json"]
    assert train.main(asked) == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["gguf"] is None
    assert " as GGUF" not in said.err


def test_it_is_told_beside_llama_quantizes_file():
    size = GgufSize(61_867_712, Nearest("Q2_0", 61_867_000))
    assert size.line() == "61.9 MB as GGUF; llama-quantize's nearest: Q2_0, 61.9 MB"
    assert GgufSize(1_234_567_890, None).line() == "1,234.6 MB as GGUF"
