"""The commands as a user runs them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lrqat.checkpoint import Checkpoint
from tools import command, evaluate, export, inspection, parity, train

ROOT = Path(__file__).resolve().parents[1]
TOOLS = {
    "train": train, "export": export, "evaluate": evaluate, "parity": parity, "inspect": inspection,
}  # fmt: skip


def run(tool, *arguments, shell_prefix=""):
    """A real process, from the repository, as in the README."""
    command = [sys.executable, f"tools/{tool}.py", *map(str, arguments)]
    if shell_prefix:
        command = ["bash", "-c", f'{shell_prefix}; exec "$@"', "-", *command]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def last_json(capfd):
    """The one line on standard output."""
    return one_object(capfd.readouterr().out)


def one_object(out):
    assert out.count("\n") == 1, out
    return json.loads(out)


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
def trained(tiny_model, text_file, tmp_path_factory):
    """A fused checkpoint and both exports, made by the commands."""
    folder = tmp_path_factory.mktemp("tools") / "run"
    arguments = ["--model", tiny_model, "--data", text_file, "--output", folder, "--steps", 5]
    arguments += ["--batch-size", 2, "--sequence-length", 32, "--context", 64, "--rank", 4]
    assert train.main([str(a) for a in arguments]) == 0
    for name in ("gguf", "onnx"):
        assert export.main([str(folder), "--format", name]) == 0
    return folder


@pytest.mark.slow
def test_the_whole_path(trained, tiny_model, text_file, capfd):
    """Train, export, evaluate all four kinds of target, prove both files."""
    capfd.readouterr()
    results = []
    for target in (tiny_model, trained, trained / "model-q4_0.gguf", trained / "onnx"):
        arguments = [str(target), "--data", str(text_file), "--context", "128", "--windows", "6"]
        assert evaluate.main([*arguments, "--json"]) == 0
        results.append(last_json(capfd))
    assert all(
        r.keys() == {"perplexity", "standard_error", "tokens", "runtime", "bytes"} for r in results
    )
    names = ["PyTorch", "PyTorch fake-quant", "llama.cpp", "ONNX Runtime"]
    assert [r["runtime"] for r in results] == names
    assert {r["tokens"] for r in results} == {6 * 63}
    assert results[2]["perplexity"] == pytest.approx(results[1]["perplexity"], rel=5e-3)
    assert results[3]["perplexity"] == pytest.approx(results[1]["perplexity"], rel=1e-5)

    files = [str(trained / "model-q4_0.gguf"), str(trained / "onnx")]
    arguments = [str(trained), *files, "--data", str(text_file), "--context", "128"]
    arguments += ["--windows", "6", "--accuracy-levels", "1,4"]
    assert parity.main(arguments) == 0
    shown = capfd.readouterr().out
    assert "accuracy level 4" in shown
    assert parity.main([*arguments, "--json"]) == 0
    proof = last_json(capfd)
    assert proof["passed"] is True
    assert [f["runtime"] for f in proof["files"]] == ["llama.cpp", "ONNX Runtime"]
    for file in proof["files"]:
        assert file["passed"] is True
        assert file["l0"]["mismatches"] == 0
        assert file["l1"]["max_logit_difference"] < 1e-4
        assert file["l2"]["reference_perplexity"] == pytest.approx(results[1]["perplexity"])
        assert {"perplexity", "relative_difference", "kl", "same_top"} < file["l2"].keys()
    assert proof["files"][0]["accuracy_levels"] == {}
    exact, rounded = (proof["files"][1]["accuracy_levels"][level] for level in ("1", "4"))
    assert exact["kl"] == proof["files"][1]["l2"]["kl"] < 1e-9
    assert abs(exact["relative_difference"]) <= 1e-6
    assert rounded["kl"] > 1e-7, "level 4 rounds activations"
    sample = proof["files"][1]["sample"].rstrip("\ufffd")  # it may end within a character
    assert sample
    assert proof["sample"]["reference"].startswith(sample)
    assert proof["sample"]["prompt"] == text_file.read_text()[:40]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_a_corrupted_file_fails_with_status_1(trained, text_file, tmp_path, name, capfd):
    checkpoint = trained
    if name == "gguf":
        damaged = Path(shutil.copy(trained / "model-q4_0.gguf", tmp_path))
        data = damaged
    else:
        damaged = Path(shutil.copytree(trained / "onnx", tmp_path / "onnx"))
        data = damaged / "model.onnx_data"
    content = bytearray(data.read_bytes())
    content[-5000] ^= 0x11
    data.write_bytes(content)
    arguments = [str(checkpoint), str(damaged), "--data", str(text_file), "--context", "128"]
    capfd.readouterr()
    assert parity.main([*arguments, "--windows", "2", "--json"]) == 1
    proof = last_json(capfd)
    assert proof["passed"] is False
    assert proof["files"][0]["l0"]["mismatches"] > 0


def test_the_file_is_named_after_the_type_asked_for(make_small, tmp_path, capfd):
    checkpoint = shutil.copytree(make_small("q4_0").path, tmp_path / "fused")
    assert export.main([str(checkpoint), "--format", "gguf", "--type", "q8_0"]) == 0
    assert [path.name for path in checkpoint.glob("*.gguf")] == ["model-q8_0.gguf"]


@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_a_dry_run_lists_every_tensor_and_writes_nothing(fused_checkpoint, name, capfd):
    before = sorted(fused_checkpoint.rglob("*"))
    arguments = [str(fused_checkpoint), "--format", name, "--dry-run"]
    assert export.main(arguments) == 0
    assert "bytes" in capfd.readouterr().out
    assert export.main([*arguments, "--json"]) == 0
    plan = last_json(capfd)
    checkpoint = Checkpoint.open(fused_checkpoint)
    listed = {entry["source"].removesuffix(".weight") for entry in plan["tensors"]}
    names = checkpoint.quantized_names + checkpoint.floating_names
    assert listed == {name.removesuffix(".weight") for name in names}
    assert sum(entry["quantized"] for entry in plan["tensors"]) == 14
    assert all(entry["bytes"] > 0 for entry in plan["tensors"])
    assert sorted(fused_checkpoint.rglob("*")) == before


def test_a_training_dry_run_prints_the_plan(tiny_model, text_file, tmp_path, capfd):
    arguments = ["--model", tiny_model, "--data", text_file, "--output", tmp_path / "x"]
    arguments += ["--keep", "down_proj", "--dry-run", "--json"]
    assert train.main([str(a) for a in arguments]) == 0
    captured = capfd.readouterr()
    plan = json.loads(captured.out)
    assert plan["trainable"] > 0
    assert plan["memory_bytes"]["total"] > 0
    assert "stays in floating point: model.layers.1.mlp.down_proj" in captured.err
    assert not (tmp_path / "x").exists()


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
    ("export {fused} --format gguf --split-max-size 2T", "such as 2G or 500M"),
    ("inspect {work}/none", "no .gguf file, ONNX folder or fused checkpoint"),
    ("inspect {model}", "no .gguf file, ONNX folder or fused checkpoint"),
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
    ("export {fused} --format gguf --output {text}/x.gguf", "cannot write"),
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


def test_inspect_tells_what_is_exact(fused_checkpoint, make_fused, onnx_folder, tmp_path, capfd):
    path = tmp_path / "model.gguf"
    export.main([str(fused_checkpoint), "--format", "gguf", "--output", str(path)])
    capfd.readouterr()
    for file in (path, onnx_folder("q4_0")):
        assert inspection.main([str(file), "--json"]) == 0
        alone = last_json(capfd)
        assert alone["exact"] is None
        assert inspection.main([str(file), "--checkpoint", str(fused_checkpoint), "--json"]) == 0
        assert last_json(capfd) == alone | {"exact": True, "mismatches": {}}
        other = make_fused("int4-channel")
        assert inspection.main([str(file), "--checkpoint", str(other), "--json"]) == 1
        found = last_json(capfd)
        assert found["exact"] is False
        assert sum(found["mismatches"].values()) > 100
    assert inspection.main([str(path), "--checkpoint", str(fused_checkpoint)]) == 0
    assert "exact: every weight" in capfd.readouterr().out


@pytest.fixture(scope="module")
def odd_rows(text, tmp_path_factory):
    """A model whose down_proj has 172 inputs, which no block of 32 fits."""
    from lrqat.base_model import make_tokenizer, make_untrained_model

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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_existing_output_is_kept_without_overwrite_and_on_a_full_disk(
    trained, tmp_path, name, capfd
):
    made = "model-q4_0.gguf" if name == "gguf" else "onnx"
    target = tmp_path / made
    copy = shutil.copytree if name == "onnx" else shutil.copy
    copy(trained / made, target)

    def contents():
        files = [target] if name == "gguf" else sorted(target.iterdir())
        return [path.read_bytes() for path in files]

    before = contents()
    arguments = ["export", trained, "--format", name, "--output", target]
    done = run(*arguments)
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    # 64 blocks of 1 kB a file: writing fails half-way, as on a full disk.
    done = run(*arguments, "--overwrite", shell_prefix="trap '' XFSZ; ulimit -f 64")
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert contents() == before
    assert [path.name for path in tmp_path.iterdir()] == [made]


@pytest.mark.slow
def test_a_real_process_prints_one_object_and_nothing_else(tiny_model, text_file, tmp_path):
    arguments = ["--model", tiny_model, "--data", text_file, "--output", tmp_path / "run"]
    arguments += ["--steps", 2, "--batch-size", 2, "--sequence-length", 32, "--context", 64]
    done = run("train", *arguments, "--eval-windows", 4, "--json")
    assert done.returncode == 0, done.stderr
    report = one_object(done.stdout)
    assert report.keys() == {
        *("output", "perplexity", "kl", "same_top_after", "changed", "seconds", "skipped_steps"),
        "made_worse",
    }
    assert report["perplexity"].keys() == {"before", "round_to_nearest", "after"}
    done = run("export", tmp_path / "run", "--format", "gguf", "--json")
    assert done.returncode == 0, done.stderr
    assert Path(one_object(done.stdout)["path"]).stat().st_size == one_object(done.stdout)["bytes"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_a_full_disk_leaves_nothing_where_nothing_was(fused_checkpoint, tmp_path, name):
    arguments = ["export", fused_checkpoint, "--format", name, "--output", tmp_path / "out"]
    done = run(*arguments, shell_prefix="trap '' XFSZ; ulimit -f 64")
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


SCRIPTS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))
NOT_COMMANDS = {"__init__", "command", "inspection"}


@pytest.mark.parametrize("tool", [name for name in SCRIPTS if name not in NOT_COMMANDS])
def test_help_is_there(tool):
    done = run(tool, "--help")
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout


@pytest.mark.parametrize("inside", [True, False])
def test_a_tool_named_inspect_hides_nothing(inside, tmp_path):
    """tools/ is first on the path of its scripts, and the standard library has an inspect too."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import dataclasses, inspect\n"
    code += "assert callable(inspect.signature); print(inspect.__file__)\n"
    code += "assert sys.modules['inspect'] is inspect"
    where = ROOT / "tools"
    command = [sys.executable, "-c", code, "" if inside else str(where)]
    cwd = where if inside else tmp_path
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=True)
    assert Path(done.stdout.strip()).parent != where
