"""The promise: what was trained is what the runtimes compute, on every grid, in both formats."""

import dataclasses
import shutil

import onnx
import pytest

from conftest import SHARED, shared_model
from exporters import gguf
from exporters import onnx as onnx_exporter
from lrqat import fuse, hub, surgery
from lrqat.base_model import make_tokenizer, make_untrained_model, train_base_model
from lrqat.checkpoint import Checkpoint
from lrqat.config import TrainConfig
from lrqat.data import pack
from lrqat.errors import UserError
from lrqat.grid import GRIDS
from lrqat.training import train
from runtime_tests.llama_cpp import LlamaCpp
from runtime_tests.parity import prove


@pytest.fixture(scope="session")
def base_model(text, tmp_path_factory):
    """A small Llama that has really learned something: 80 steps on Python source."""
    folder = tmp_path_factory.mktemp("base") / "small-llama"
    tokenizer = make_tokenizer([text], vocabulary=512)
    model = make_untrained_model(
        len(tokenizer), hidden=128, intermediate=256, layers=2, heads=4, kv_heads=2, seed=0
    )
    blocks = pack(iter([text]), tokenizer, length=128, needed_tokens=0)
    train_base_model(
        model, blocks, steps=80, batch_size=8, learning_rate=5e-3, folder=folder / "trainer"
    )
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def proven(base_model, text_file, text, tmp_path_factory):
    """Function grid -> (trained checkpoint, its two files, their proofs)."""
    made = {}

    def make(grid):
        if grid not in made:
            output = tmp_path_factory.mktemp("proven") / grid
            config = TrainConfig(
                model=str(base_model),
                data=str(text_file),
                output=str(output),
                grid=grid,
                steps=20,
                batch_size=4,
                sequence_length=64,
                rank=8,
                context=128,
                teacher="self",
            )
            assert train(config).changed > 0
            files = export_both(output)
            made[grid] = (output, files, prove(output, files, text[:80_000], context=128, limit=24))
        return made[grid]

    return make


def export_both(folder):
    checkpoint = Checkpoint.open(folder)
    paths = folder / gguf.default_name(checkpoint), folder / onnx_exporter.default_name(checkpoint)
    for exporter, path in zip((gguf, onnx_exporter), paths, strict=True):
        exporter.write(exporter.plan(checkpoint), path)
    return [str(path) for path in paths]


def assert_proved(proofs):
    for proof in proofs:
        assert proof.mismatches == {}
        assert proof.tensors > 0
        assert proof.logit_difference < 1e-4
        assert proof.same_tokens
        assert proof.verdicts == {"L0": True, "L1": True, "L2": True}, proof.to_json()
        assert proof.passed
    by_runtime = {proof.runtime: proof.comparison for proof in proofs}
    assert abs(by_runtime["ONNX Runtime"].relative_difference) <= 1e-5
    llama = by_runtime["llama.cpp"]
    assert abs(llama.relative_difference) <= 5e-3
    assert llama.standard_errors <= 3
    assert llama.kl < 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("grid", GRIDS)
def test_trained_is_what_the_runtimes_compute(grid, proven):
    assert_proved(proven(grid)[2])


@pytest.mark.slow
def test_the_artefacts_carry_the_reference_perplexity(proven):
    from gguf import GGUFReader

    folder, (gguf_file, onnx_folder), _ = proven("q4_0")
    recorded = Checkpoint.open(folder).manifest["reference"]["perplexity"]
    field = GGUFReader(gguf_file).get_field("lrqat.reference.perplexity")
    assert field is not None
    assert field.contents() == recorded
    model = onnx.load(f"{onnx_folder}/model.onnx", load_external_data=False)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert float(properties["lrqat.reference.perplexity"]) == recorded


@pytest.mark.slow
def test_a_file_of_another_checkpoint_fails_l0_and_l2(proven, text):
    (folder, files, _), (_, others, _) = proven("q4_0"), proven("int4-channel")
    for file in others:
        proof = prove(folder, [file], text[:40_000], context=128, limit=8)[0]
        assert not proof.verdicts["L0"]
        assert sum(proof.mismatches.values()) > 1000
        assert proof.verdicts["L1"] or file == others[1], "the GGUF twin is made anew"
        assert not proof.passed
    assert files


@pytest.mark.slow
def test_a_graph_without_row_permutation_fails_l1(proven, text, monkeypatch):
    """The classic mistake of a GGUF converter: right bytes by its own reader, wrong model."""
    from exporters.gguf.architectures import find_architecture

    def forgetful(config):
        return dataclasses.replace(find_architecture(config), row_order=lambda config, name: None)

    folder, (file, _), _ = proven("q4_0")
    for module in ("planning", "reader"):
        monkeypatch.setattr(f"exporters.gguf.{module}.find_architecture", forgetful)
    proof = prove(folder, [file], text[:40_000], context=128, limit=4)[0]
    assert not proof.verdicts["L1"]
    assert not proof.passed


def test_only_exported_files_can_be_proved(fused_checkpoint, text):
    with pytest.raises(UserError, match=r"neither a \.gguf file nor an ONNX folder"):
        prove(fused_checkpoint, [str(fused_checkpoint)], text)


def fuse_rounded(model_folder, target):
    """A fused q4_0 checkpoint of a shared model at round-to-nearest."""
    import torch

    config = hub.load_config(str(model_folder))
    model = hub.load_model(str(model_folder), dtype=torch.float32)
    plan = surgery.plan_surgery(model, "q4_0")
    surgery.prepare(model, plan)
    base = {
        "name": model_folder.name,
        "revision": None,
        "dtype": str(config.dtype).removeprefix("torch."),
    }
    return fuse.fuse(model, hub.load_tokenizer(model_folder), target, plan=plan, base_model=base)


@pytest.mark.slow
@pytest.mark.parametrize("path", [shared_model("stories260k"), shared_model("pycode-8m")])
def test_real_models(path, tmp_path):
    """Models that others trained: sentencepiece and tied, byte-level BPE and bfloat16."""
    folder = fuse_rounded(path, tmp_path / "fused")
    files = export_both(folder)
    name, context = {
        "stories260k": ("tinystories-sample.txt", 256),
        "pycode-8m": ("pycode/valid.txt", 512),
    }[path.name]
    text = (SHARED / "data" / name).read_text(encoding="utf-8")[:120_000]
    assert_proved(prove(folder, files, text, context=context, limit=16))
    with LlamaCpp.open(files[0]) as llama:
        assert llama.detokenize(llama.tokenize("Once upon a time", add_special=False)).strip() == (
            "Once upon a time"
        )
    shutil.rmtree(folder)
