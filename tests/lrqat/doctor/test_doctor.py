"""`lrqat doctor`: the machine, and where the types of a model run."""

import importlib.metadata
import json

import pytest
import torch

from exporters.onnx.presets import PRESETS
from lrqat.cli import doctor, export, train
from lrqat.doctor import environment
from lrqat.doctor.subject import subject_of_grids, subject_of_path, subject_of_recipe
from lrqat.doctor.verdict import judge, one_line, remarks
from lrqat.errors import UserError
from lrqat.grids.backends import BACKENDS, GGUF, ONNX, Speed
from tests.support.commands import last_json


def speeds(subject):
    return {each.backend: each.speed for each in judge(subject)}


def test_two_bits_are_slow_on_x86_and_it_is_said_before_training():
    subject = subject_of_grids("q2_0", ["q2_0"])
    found = speeds(subject)
    assert found["cpu"] == Speed.SLOW
    assert {found[name] for name in ("arm", "cuda", "metal", "vulkan")} == {Speed.FAST}
    assert "slow on cpu" in one_line(judge(subject))
    assert "17 tokens a second" in remarks(subject)[0]
    assert not remarks(subject_of_grids("q4_0", ["q4_0"]))


def test_ternary_types_are_fast_on_processors_and_hardly_anywhere_else():
    for grid in ("tq1_0", "tq2_0"):
        subject = subject_of_grids(grid, [grid])
        found = speeds(subject)
        assert found["cpu"] == found["arm"] == Speed.FAST
        assert found["cuda"] == found["opencl"] == found["llama-webgpu"] == Speed.SLOW
        assert found["ollama"] == Speed.REFUSED
        assert "hardly anywhere" in remarks(subject)[0]


def test_the_slowest_type_counts_and_is_named():
    found = {v.backend: v for v in judge(subject_of_grids("both", ["q4_0", "q2_0", "none"]))}
    assert found["cpu"].speed == Speed.SLOW
    assert found["cpu"].reason.startswith("q2_0:")
    assert found["cpu"].types == {"q4_0": Speed.FAST, "q2_0": Speed.SLOW}


def test_a_grid_that_a_format_has_no_type_for_is_said_to_have_no_form():
    found = {v.backend: v for v in judge(subject_of_grids("q4_k", ["q4_k"]))}
    assert found["web"].speed is None
    assert "q4_k" in found["web"].reason
    assert found["cpu"].speed == Speed.FAST
    assert speeds(subject_of_grids("x", ["int3-channel"]))["ort-cpu"] == Speed.FAST


def test_what_is_in_no_list_is_unknown():
    assert BACKENDS["cuda"].speed_of("iq2_xxs") == Speed.UNKNOWN
    assert BACKENDS["web"].speed_of("int4-g16") == Speed.UNKNOWN
    assert BACKENDS["web"].speed_of("int4") == Speed.FAST


def test_two_bits_are_four_where_the_preset_of_an_export_says_so():
    found = {v.backend: v for v in judge(subject_of_grids("int2-g64", ["int2-g64"]))}
    assert found["web"].types == {"int4-g64": Speed.FAST}
    assert found["ort-cpu"].types == {"int2-g64": Speed.RUNS}
    presets = {"web": "webgpu", "npu": "qnn", "openvino": "openvino", "ort-cpu": "cpu"}
    for name, preset in (*presets.items(), ("ort-cuda", "gpu")):
        assert BACKENDS[name].widens == (PRESETS[preset].two_bit_type[0] == "int4"), name


def test_files_are_judged_by_what_they_hold(fused_checkpoint, onnx_folder, tmp_path):
    path = tmp_path / "model.gguf"
    assert export.main([str(fused_checkpoint), "--format", "gguf", "--output", str(path)]) == 0
    assert subject_of_path(str(path)).types.keys() == {GGUF}
    # What is planned of the checkpoint is what the file has.
    planned = subject_of_path(str(fused_checkpoint)).types
    assert subject_of_path(str(path)).types[GGUF] == planned[GGUF]
    assert set(subject_of_path(str(onnx_folder("q4_0"))).types[ONNX]) == {"int4"}


def test_a_recipe_is_judged_by_its_grids(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("rules:\n  _proj$: q4_0\n  down_proj: q2_0\n  lm_head: none\n")
    assert set(subject_of_recipe(str(path)).types[GGUF]) == {"q4_0", "q2_0"}
    with pytest.raises(UserError, match="depends on the"):
        subject_of_recipe("Q4_K_M")


def test_an_extra_that_is_missing_has_its_command(monkeypatch):
    version = importlib.metadata.version

    def without(name):
        if name in ("onnxruntime", "xllamacpp"):
            raise importlib.metadata.PackageNotFoundError(name)
        return "0.1" if name == "gguf" else version(name)

    monkeypatch.setattr(importlib.metadata, "version", without)
    found = {extra.name: extra for extra in environment.Environment.find().extras}
    assert found["onnx"].missing == ("onnxruntime",)
    assert found["onnx"].command == "pip install 'lrqat[onnx]'"
    assert "onnxruntime" in found["onnx-genai"].missing
    assert found["llama-cpp"].missing == ("xllamacpp",)
    assert "0.1 is installed" in found["gguf"].missing[0]
    assert "dev" not in found


def test_the_machine_is_described_as_json(capfd):
    assert doctor.main(["--json"]) == 0
    found = last_json(capfd)["environment"]
    assert found["versions"]["torch"] == torch.__version__
    assert found["memory"]["total"] >= found["memory"]["free"] > 1 << 20
    assert found["devices"]["cpu"]
    assert found["cpu_bfloat16"] in (True, False, None)


def test_the_command_tells_and_measures(fused_checkpoint, onnx_folder, capfd):
    assert doctor.main(["--grid", "q2_0", "--sources"]) == 0
    shown = capfd.readouterr().out
    assert "ggml-cpu/arch-fallback.h" in shown
    assert "17 tokens a second" in shown
    for what in (["--grid", "q2_0"], [str(fused_checkpoint)]):
        assert doctor.main([*what, "--measure", "--json"]) == 0
        assert last_json(capfd)["measured"]["weights_per_second"]["q8_0"] > 1e6
    arguments = [str(onnx_folder("q4_0")), "--measure", "--threads", "1", "--json"]
    assert doctor.main(arguments) == 0
    measured = last_json(capfd)["measured"]
    assert measured["runtime"] == "ONNX Runtime"
    assert min(measured["prompt"], measured["generation"]) > 1


@pytest.mark.parametrize("arguments", [["a.gguf", "--grid", "q4_0"], ["--measure"], ["none.x"]])
def test_what_cannot_be_asked_is_refused(arguments):
    with pytest.raises(UserError):
        doctor.main(arguments)


def test_training_and_export_say_it_in_one_line(tiny_model, text_file, make_small, tmp_path, capfd):
    arguments = ["--model", tiny_model, "--data", text_file, "--output", tmp_path / "x"]
    assert train.main([str(a) for a in (*arguments, "--grid", "q2_0", "--dry-run")]) == 0
    said = capfd.readouterr()
    assert "runs fast on arm, cuda, metal, vulkan" in said.out
    assert "has no fast kernel in llama.cpp" in said.err
    path = str(tmp_path / "m.gguf")
    arguments = [str(make_small("q4_0").path), "--format", "gguf", "--output", path, "--json"]
    assert export.main(arguments) == 0
    said = capfd.readouterr()
    assert "runs fast on cpu" in said.err
    json.loads(said.out)
