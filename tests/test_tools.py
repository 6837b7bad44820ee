"""The commands as a user runs them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tools import evaluate, export, parity, train

ROOT = Path(__file__).resolve().parents[1]


def run(tool, *arguments, shell_prefix=""):
    """A real process, from the repository, as in the README."""
    command = [sys.executable, f"tools/{tool}.py", *map(str, arguments)]
    if shell_prefix:
        command = ["bash", "-c", f'{shell_prefix}; exec "$@"', "-", *command]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def last_json(capfd):
    """The one line on standard output."""
    out = capfd.readouterr().out
    assert out.count("\n") == 1, out
    return json.loads(out)


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
    assert parity.main([*arguments, "--windows", "6", "--json"]) == 0
    proof = last_json(capfd)
    assert proof["passed"] is True
    assert [f["runtime"] for f in proof["files"]] == ["llama.cpp", "ONNX Runtime"]
    for file in proof["files"]:
        assert file["passed"] is True
        assert file["l0"]["mismatches"] == 0
        assert file["l1"]["max_logit_difference"] < 1e-4
        assert file["l2"]["reference_perplexity"] == pytest.approx(results[1]["perplexity"])
        assert {"perplexity", "relative_difference", "kl", "same_top"} < file["l2"].keys()


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


@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_a_dry_run_lists_every_tensor_and_writes_nothing(fused_checkpoint, name, capfd):
    before = sorted(fused_checkpoint.rglob("*"))
    arguments = [str(fused_checkpoint), "--format", name, "--dry-run", "--json"]
    assert export.main(arguments) == 0
    plan = last_json(capfd)
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


def damaged_checkpoint(fused_checkpoint, tmp_path, change):
    copy = shutil.copytree(fused_checkpoint, tmp_path / "damaged")
    path = copy / "model.safetensors"
    path.write_bytes(change(path.read_bytes()))
    return copy


@pytest.mark.slow
def test_mistakes_are_one_message_status_2_and_leave_nothing(
    fused_checkpoint, tiny_model, text_file, tmp_path
):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("too short")
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text('{"model_type": "t5"}')
    cut = damaged_checkpoint(fused_checkpoint, tmp_path, lambda data: data[:-9])
    work = tmp_path / "work"
    work.mkdir()
    base = ["train", "--data", text_file, "--output", work / "run"]
    cases = [
        ([*base, "--model", "no/such/folder"], "no model folder at no/such/folder"),
        ([*base, "--model", tmp_path / "t5"], "not a causal language model"),
        ([*base, "--model", tiny_model, "--grid", "q4"], "did you mean q4_0"),
        ([*base, "--model", tiny_model, "--steps", "0"], "--steps 0 must be at least 1"),
        (["evaluate", tiny_model, "--data", tmp_path / "empty.txt"], "empty.txt is empty"),
        (["evaluate", tiny_model, "--data", tmp_path / "short.txt"], "needs at least 1024"),
        (["evaluate", work / "no.gguf", "--data", text_file], "no GGUF file"),
        (["export", cut, "--format", "gguf"], "truncated or altered"),
        (["export", tiny_model, "--format", "gguf"], "is not a fused checkpoint"),
        (["export", fused_checkpoint, "--format", "gguff"], "did you mean gguf"),
        (["export", fused_checkpoint, "--format", "gguf", "--type", "q4_O"], "did you mean q4_0"),
        (["export", fused_checkpoint, "--format", "onnx", "--opset", "9"], "choose 21, 22, 23"),
        (["parity", fused_checkpoint, "x.bin", "--data", text_file], "neither a .gguf file nor"),
    ]
    for (tool, *arguments), message in cases:
        done = run(tool, *arguments)
        assert done.returncode == 2, (arguments, done.stderr)
        assert done.stdout == ""
        assert message in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
        assert done.stderr.count("error:") == 1
    assert list(work.iterdir()) == []


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
    assert "--keep" in done.stderr
    assert sorted(folder.iterdir()) == before
    assert export.main([str(folder), "--format", "gguf", "--dry-run", "--json"]) == 2
    assert last_json(capfd)["refusals"]
    target = folder.parent / "odd-onnx"
    assert export.main([str(folder), "--format", "onnx", "--output", str(target)]) == 0


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


@pytest.mark.parametrize("tool", ["train", "export", "evaluate", "parity", "demo"])
def test_help_is_there(tool):
    done = run(tool, "--help")
    assert done.returncode == 0
    assert "--json" in done.stdout
