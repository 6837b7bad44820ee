"""Mistakes of a user: one message each, status 2, and nothing left behind."""

import json
import shutil
import sys

import pytest

from lrqat.cli import command, evaluate, export, parity, train
from lrqat.cli import inspect as inspection
from tests.support.commands import last_json, run

TOOLS = {
    "train": train, "export": export, "evaluate": evaluate, "parity": parity, "inspect": inspection,
}  # fmt: skip


@pytest.fixture
def refusal(monkeypatch, capfd):
    """Function (tool, *arguments) -> the one message of a command that is refused with --json.

    As a process runs it, from sys.argv to the exit status, without the seconds of a new one. What
    would be a traceback there is an exception here.
    """

    def call(tool, *arguments):
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", [f"tools/{tool}.py", *map(str, arguments), "--json"])
        with pytest.raises(SystemExit) as exit_status:
            command.run(TOOLS[tool].main)
        captured = capfd.readouterr()
        assert exit_status.value.code == 2, captured.err
        assert captured.out == ""
        assert captured.err.count("error:") == 1, captured.err
        return captured.err

    return call


@pytest.fixture(scope="module")
def bad(fused_checkpoint, tiny_model, make_fused, odd_rows, onnx_folder, tmp_path_factory):
    """Folder of inputs that are each wrong in one way."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "empty.txt").write_text("")
    (folder / "short.txt").write_text("too short")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00" * 100)
    (folder / "garbage.gguf").write_bytes(b"GGUF" + b"\xff" * 400)
    for kind in ("t5", "bert"):
        (folder / kind).mkdir()
        (folder / kind / "config.json").write_text(f'{{"model_type": "{kind}"}}')
    content = (fused_checkpoint / "model.safetensors").read_bytes()
    damage = {"cut": content[:-9], "altered": content[:-1] + bytes([content[-1] ^ 1])}
    for name, damaged in damage.items():
        copy = shutil.copytree(fused_checkpoint, folder / name)
        (copy / "model.safetensors").write_bytes(damaged)
    weights = shutil.copytree(tiny_model, folder / "cut-model") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    data = shutil.copytree(onnx_folder("q4_0"), folder / "cut-onnx") / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:9000])
    # 300 tokens against the tiny model's 512.
    mixed = shutil.copytree(odd_rows, folder / "large-tokenizer")
    shutil.copy(tiny_model / "tokenizer.json", mixed)
    (folder / "small-fused").symlink_to(make_fused("int4-channel", source=odd_rows))
    large = folder / "large.gguf"
    assert export.main([str(fused_checkpoint), "--format", "gguf", "--output", str(large)]) == 0
    return folder


# {model}, {fused}, {text}, {bad} and {work}, an empty folder, are paths.
TRAIN = "train --data {text} --output {work}/run"
MISTAKES = [
    (TRAIN + " --model no/such/folder", "no model folder at no/such/folder"),
    (TRAIN + " --model {bad}/t5", "not a causal language model"),
    (TRAIN + " --model {bad}/cut-model", "is damaged"),
    (TRAIN + " --model {fused}", "already a fused checkpoint"),
    (TRAIN + " --model {model} --grid q40", "did you mean q4_0"),
    (TRAIN + " --model {model} --steps 0", "--steps 0 must be at least 1"),
    (TRAIN + " --model {model} --keep (", "is not a regular expression"),
    (TRAIN + " --model {model} --keep nothing", "matches no linear layer"),
    ("train --model {model} --output {work}/run --data {bad}/empty.txt", "empty.txt is empty"),
    ("train --model {model} --output {work}/run --data {bad}/binary.txt", "is not UTF-8 text"),
    ("evaluate {model} --data {bad}/empty.txt", "empty.txt is empty"),
    ("evaluate {model} --data {bad}/short.txt", "needs at least 1024"),
    ("evaluate {model} --data {bad}/no.txt", "no text file"),
    ("evaluate {model} --data {text} --context 3", "--context 3 is too small"),
    ("evaluate no/such/folder --data {text}", "no model folder at no/such/folder"),
    ("evaluate {bad}/t5 --data {text}", "not a causal language model"),
    ("evaluate {bad}/altered --data {text}", "does not match the sha256"),
    ("evaluate {bad}/cut-onnx --data {text}", "ONNX Runtime cannot load"),
    ("evaluate {bad}/garbage.gguf --data {text}", "llama.cpp cannot load"),
    ("evaluate {work}/no.gguf --data {text}", "no GGUF file"),
    ("evaluate {work} --data {text}", "nothing to evaluate"),
    ("export no/such/folder --format gguf", "no checkpoint folder"),
    ("export {bad}/cut --format gguf", "truncated or altered"),
    ("export {bad}/altered --format onnx", "does not match the sha256"),
    ("export {model} --format gguf", "is not a fused checkpoint"),
    ("export {fused} --format gguff", "did you mean gguf"),
    ("export {fused} --format gguf --type q4_O", "did you mean q4_0"),
    ("export {fused} --format onnx --opset 9", "choose 21, 22, 23"),
    ("export {fused} --format onnx --output {fused}/.. --overwrite", "holds the checkpoint"),
    ("parity {fused} x.bin --data {text}", "neither a .gguf file nor"),
    ("parity {model} {bad}/garbage.gguf --data {text}", "is not a fused checkpoint"),
    ("parity {fused} {bad}/garbage.gguf --data {text}", "is not a valid GGUF file"),
    ("parity {fused} {bad}/cut-onnx --data {text}", "cannot be read"),
    ("parity {fused} {bad}/large.gguf --data {text} --accuracy-levels 4", "is an ONNX folder"),
    ("parity {fused} {bad}/cut-onnx --data {text} --accuracy-levels 1,8", "levels from 0 to 4"),
    ("export {fused} --format gguf --split-max-size 2T", "is no size; write 70MB"),
    ("inspect {work}/none", "no .gguf file, ONNX folder or fused checkpoint"),
    ("inspect {bad}/garbage.gguf", "is not a valid GGUF file"),
    ("inspect {bad}/cut-onnx", "it is cut off"),
    ("inspect {bad}/altered", "does not match the sha256"),
    ("inspect {bad}/large.gguf --checkpoint {model}", "is not a fused checkpoint"),
    ("inspect {fused} --checkpoint {fused}", "is no exported file"),
    ("evaluate {model} --data {text} --windows 0", "--windows"),
    ("evaluate {model} --data {text} --windows -1", "--windows"),
    ("evaluate {model} --data {text} --windows 1 --context 4", "--context 4 is too small"),
    ("evaluate {bad}/large-tokenizer --data {text}", "vocabulary"),
    ("parity {bad}/small-fused {bad}/large.gguf --data {text} --context 64", "vocabulary"),
    (TRAIN + " --model {model} --eval-windows 0", "--eval-windows"),
    (TRAIN + " --model {model} --seed -1", "--seed"),
    (TRAIN + " --model {model} --learning-rate inf", "--learning-rate"),
    (TRAIN + " --model {model} --alpha nan", "--alpha"),
    ("train --model {model} --data {text} --output {text}/run", "cannot write"),
    (TRAIN.replace("{work}", "{text}") + " --model {model} --dry-run", "path is a file"),
    ("export {fused} --format gguf --output {text}/x.gguf", "cannot write"),
    ("export {fused} --format gguf --output {text}/x.gguf --dry-run", "path is a file"),
    ("export {fused} --format gguf --output {bad} --dry-run", "it is a folder; name a file"),
    ("export {fused} --format onnx --output {text} --dry-run", "path is a file"),
    ("export {fused} --format gguf --output {bad} --overwrite", "cannot write"),
    ("export {fused} --format onnx --output {bad} --overwrite", "is not an earlier export"),
]


@pytest.fixture
def places(fused_checkpoint, tiny_model, text_file, bad, tmp_path):
    """Function from a command line with names in braces to its arguments."""
    paths = {"fused": fused_checkpoint, "model": tiny_model, "text": text_file, "bad": bad}
    return lambda line: [part.format(work=tmp_path, **paths) for part in line.split()]


@pytest.mark.parametrize(
    ("line", "message"),
    MISTAKES,
)
def test_a_mistake_is_one_message_with_status_2_and_leaves_nothing(
    line, message, places, refusal, tmp_path
):
    assert message in refusal(*places(line))
    assert list(tmp_path.iterdir()) == []


def test_a_mistake_is_no_traceback_in_a_real_process(places):
    done = run(*places("export {bad}/cut --format gguf --json"))
    assert (done.returncode, done.stdout) == (2, "")
    assert "truncated or altered" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_library_adds_no_warning_to_the_one_message(tiny_model, text_file, tmp_path):
    """transformers has one for this number, and a tool imports it before the command begins."""
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"pad_token_id": 512}))
    options = ["--grid", "q4_0", "--data", text_file, "--output", tmp_path / "run", "--dry-run"]
    done = run("train", "--model", folder, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: the configuration of this 'llama' model cannot be built")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def odd_rows(text, tmp_path_factory):
    """A model whose down_proj has 172 inputs, which no block of 32 fits."""
    from lrqat.models.small_llama import make_tokenizer, make_untrained_model

    folder = tmp_path_factory.mktemp("odd") / "odd-llama"
    make_tokenizer([text], vocabulary=300).save_pretrained(folder)
    model = make_untrained_model(
        300, hidden=64, intermediate=172, layers=1, heads=2, kv_heads=2, seed=0
    )
    model.save_pretrained(folder)
    return folder


def test_what_a_format_cannot_hold_is_refused_with_the_alternatives(odd_rows, make_fused, capfd):
    folder = make_fused("int4-channel", source=odd_rows)
    before = sorted(folder.iterdir())
    done = run("export", folder, "--format", "gguf")
    assert done.returncode == 2
    assert "down_proj" in done.stderr
    assert "172" in done.stderr
    assert "train with this module in --keep" in done.stderr
    assert "or export ONNX" in done.stderr
    assert sorted(folder.iterdir()) == before
    assert export.main([str(folder), "--format", "gguf", "--dry-run", "--json"]) == 2
    assert last_json(capfd)["refusals"]
    target = folder.parent / "odd-onnx"
    arguments = [str(folder), "--format", "onnx", "--output", str(target), "--json"]
    assert export.main(arguments) == 0
    assert last_json(capfd)["quantized"] == 7
