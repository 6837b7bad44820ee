"""The commands as a user runs them."""

import json
import shutil
from pathlib import Path

import pytest

from lrqat.checkpoint.reader import Checkpoint
from lrqat.cli import evaluate, export, parity, train
from lrqat.cli import inspect as inspection
from lrqat.evaluation.perplexity import Windows, perplexity
from lrqat.evaluation.text import EvaluationText, encode
from lrqat.models import hub
from lrqat.models.reference import load_reference, torch_logits
from tests.support.commands import last_json, one_object, run
from tests.support.onnx_exports import reused_traces
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def trained(tiny_model, text_file, tmp_path_factory):
    """A fused checkpoint and both exports, made by the commands."""
    folder = tmp_path_factory.mktemp("tools") / "run"
    arguments = ["--model", tiny_model, "--data", text_file, "--output", folder, "--steps", 5]
    arguments += ["--batch-size", 2, "--sequence-length", 32, "--context", 64, "--rank", 4]
    arguments += ["--stages", "model", "--teacher", "none"]
    assert train.main([str(a) for a in arguments]) == 0
    with reused_traces():
        for name in ("gguf", "onnx"):
            assert export.main([str(folder), "--format", name]) == 0
    return folder


@pytest.fixture(scope="module")
def reference_perplexity(trained, text_file):
    """Of 6 windows of 128 tokens, by the library."""
    tokenizer = hub.load_tokenizer(trained)
    tokens = encode(tokenizer, EvaluationText.read(text_file).text)
    logits = torch_logits(load_reference(Checkpoint.open(trained)))
    return perplexity(logits, Windows.cut(tokens, 128, None, 6)).perplexity


@pytest.mark.slow
def test_every_kind_of_target_is_evaluated(
    trained, tiny_model, text_file, reference_perplexity, capfd
):
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
    assert results[1]["perplexity"] == pytest.approx(reference_perplexity)
    assert results[2]["perplexity"] == pytest.approx(reference_perplexity, rel=5e-3)
    assert results[3]["perplexity"] == pytest.approx(reference_perplexity, rel=1e-5)


@pytest.mark.slow
def test_both_files_are_proved(trained, text_file, reference_perplexity, capfd):
    files = [str(trained / "model-q4_0.gguf"), str(trained / "onnx")]
    arguments = [str(trained), *files, "--data", str(text_file), "--context", "128"]
    arguments += ["--windows", "6", "--accuracy-levels", "1,4"]
    capfd.readouterr()
    assert parity.main([*arguments, "--json"]) == 0
    proof = last_json(capfd)
    assert proof["passed"] is True
    assert [f["runtime"] for f in proof["files"]] == ["llama.cpp", "ONNX Runtime"]
    for file in proof["files"]:
        assert file["passed"] is True
        assert file["l0"]["mismatches"] == 0
        assert file["l1"]["max_logit_difference"] < 1e-4
        assert file["l2"]["reference_perplexity"] == pytest.approx(reference_perplexity)
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
def test_people_are_shown_the_levels(trained, text_file, capfd):
    arguments = [str(trained), str(trained / "onnx"), "--data", str(text_file), "--context", "64"]
    assert parity.main([*arguments, "--windows", "2", "--accuracy-levels", "4"]) == 0
    assert "accuracy level 4" in capfd.readouterr().out


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
    assert "stays unquantized: 2 weights: model.layers.*.mlp.down_proj" in captured.err
    assert plan["quantized"]["lm_head"]["grid"] == "q8_0"
    assert not (tmp_path / "x").exists()


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
    assert "exact: 21 tensors compared with" in capfd.readouterr().out


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
    arguments += ["--stages", "model", "--teacher", "none"]
    done = run("train", *arguments, "--eval-windows", 4, "--json")
    assert done.returncode == 0, done.stderr
    report = one_object(done.stdout)
    assert report.keys() == {
        *("output", "perplexity", "kl", "same_top_after", "changed", "seconds", "skipped_steps"),
        *("made_worse", "method", "blocks", "block_seconds", "history", "weights", "sensitivity"),
    }
    assert report["perplexity"].keys() == {"before", "round_to_nearest", "start", "after"}
    done = run("export", tmp_path / "run", "--format", "gguf", "--json")
    assert done.returncode == 0, done.stderr
    assert Path(one_object(done.stdout)["path"]).stat().st_size == one_object(done.stdout)["bytes"]


@pytest.mark.slow
def test_a_full_disk_leaves_nothing_where_nothing_was(fused_checkpoint, tmp_path):
    arguments = ["export", fused_checkpoint, "--format", "gguf", "--output", tmp_path / "out"]
    done = run(*arguments, shell_prefix="trap '' XFSZ; ulimit -f 64")
    assert done.returncode == 2, done.stderr
    assert "cannot write" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


SCRIPTS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))


@pytest.mark.parametrize("tool", [name for name in SCRIPTS if name != "__init__"])
def test_help_is_there(tool):
    done = run(tool, "--help")
    assert done.returncode == 0, done.stderr
    assert "--json" in done.stdout
