"""`--converter`: a model laid out by llama.cpp's own converter, with our packing.

Runs where LLAMA_CPP_TREE names a source tree of llama.cpp; what needs none always does.
"""

import dataclasses
import json
import os
from collections import Counter

import numpy as np
import pytest
import transformers as hf

from exporters import gguf
from exporters.gguf.converter.trained_rows import TrainedRows
from exporters.gguf.converter.upstream import verify_rows
from exporters.gguf.file import key_values as kv
from exporters.gguf.file.header import read_header
from exporters.gguf.provenance import CONVERTER
from lrqat.checkpoint.manifest import FILE_NAME
from lrqat.checkpoint.reader import Checkpoint
from lrqat.cli import export
from lrqat.errors import ExportRefusedError, OutputError
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.llama_cpp.runtime import LlamaCpp
from tests.support.checkpoints import fused
from tests.support.zoo import GELU_BOUND, L1_BOUND, SIZES, VOCABULARY

TREE = os.environ.get("LLAMA_CPP_TREE")
needs_tree = pytest.mark.skipif(not TREE, reason="LLAMA_CPP_TREE names no source tree of llama.cpp")
TOKENS = np.random.default_rng(0).integers(0, VOCABULARY, 64)
# Name -> configuration, bound of the logits of the F32 twin. Rows of StableLM stay where they are,
# those of BLOOM's q, k and v are taken apart and put together; its GELU comes from a table.
OTHERS = {
    "stablelm": (
        lambda: hf.StableLmConfig(**SIZES, use_qkv_bias=True, partial_rotary_factor=0.5),
        L1_BOUND,
    ),
    "bloom": (
        lambda: hf.BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4),
        5 * GELU_BOUND,
    ),
}


def options(**changes):
    return gguf.Options(converter=TREE, pre="gpt-2", **changes)


@needs_tree
@pytest.mark.slow
def test_where_there_is_an_entry_both_ways_give_the_same_tensors(tmp_path):
    checkpoint = fused("qwen3", tmp_path / "fused")
    gguf.write(gguf.plan(checkpoint, gguf.Options(float_type="f32")), tmp_path / "ours.gguf")
    plan = gguf.plan(checkpoint, options())
    report = gguf.write(plan, tmp_path / "theirs.gguf")
    ours, theirs = read_header(tmp_path / "ours.gguf"), read_header(tmp_path / "theirs.gguf")
    assert report.quantized == len(checkpoint.quantized_names)
    assert ours.tensors.keys() == theirs.tensors.keys()
    for name, info in ours.tensors.items():
        assert info.type == theirs.tensors[name].type
        np.testing.assert_array_equal(ours.tensors[name].read(), theirs.tensors[name].read())
    listed = Counter((t.block.TYPE.name, t.source.shape, t.nbytes) for t in plan.tensors)
    assert listed == Counter(
        (info.type_name, info.shape, info.nbytes) for info in theirs.tensors.values()
    )
    described = {k: v for k, v in ours.metadata.items() if k.startswith("lrqat.")}
    assert described.items() <= theirs.metadata.items()
    assert theirs.metadata["general.file_type"] == ours.metadata["general.file_type"]


@needs_tree
@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_architectures_without_an_entry(name, tmp_path):
    config, bound = OTHERS[name]
    checkpoint = fused(config(), tmp_path / "fused", keep=(), grid_for={"embed": "q8_0"})
    path = tmp_path / "model.gguf"
    assert gguf.plan(checkpoint).refusals
    arguments = [str(checkpoint.path), "--format", "gguf", "--output", str(path)]
    assert export.main([*arguments, "--converter", TREE, "--pre", "gpt-2"]) == 0
    assert verify_rows(path, checkpoint)[1] == len(checkpoint.quantized_names)
    assert not any(gguf.verify(path, checkpoint).values())
    expected = torch_logits(load_reference(checkpoint))(TOKENS)
    with LlamaCpp.open(path, n_ctx=64) as llama:
        assert np.abs(llama.logits(TOKENS) - expected).mean() < 0.05 * expected.std()
    gguf.write(gguf.plan(checkpoint, options(type="f32")), tmp_path / "twin.gguf")
    with LlamaCpp.open(tmp_path / "twin.gguf", n_ctx=64) as llama:
        assert np.abs(llama.logits(TOKENS) - expected).max() < bound


@needs_tree
@pytest.mark.slow
def test_a_model_that_upstream_does_not_know_leaves_nothing(tmp_path):
    checkpoint = fused(hf.DiffLlamaConfig(**SIZES), tmp_path / "fused")
    with pytest.raises(ExportRefusedError, match="cannot convert this model: NotImplementedError"):
        gguf.write(gguf.plan(checkpoint, options()), tmp_path / "model.gguf")
    assert not list(tmp_path.glob("*.gguf"))


def no_converter(folder):
    """What is looked for in a source tree of llama.cpp, without anything in it."""
    for name in ("conversion/base.py", "gguf-py/gguf/__init__.py"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).touch()
    return str(folder)


def test_a_dry_run_lists_what_the_converter_is_given(tmp_path, capsys):
    """With their types, which are those without a converter; nothing is run."""
    checkpoint = fused("qwen3", tmp_path / "fused", grid="int4-channel")
    tree = no_converter(tmp_path / "tree")
    ours = gguf.plan(checkpoint, gguf.Options(float_type="f32"))
    arguments = [str(checkpoint.path), "--format", "gguf", "--converter", tree, "--dry-run"]
    assert export.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if ".self_attn.k_proj" in line] == [
        ["model.layers.*.self_attn.k_proj.weight", "q4_0", "64", "x", "64", "2", "4,608",
         "model.layers.*.self_attn.k_proj"]
    ]  # fmt: skip
    assert f"{len(ours.tensors)} tensors, {ours.tensor_bytes:,} bytes" in lines
    assert any("names, shapes and order are the checkpoint's" in line for line in lines)
    assert export.main([*arguments, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["tensors"]
    kinds = {t.source.origin: (t.block.NAME, t.nbytes) for t in ours.tensors}
    assert {t["source"]: (t["type"], t["bytes"]) for t in listed} == kinds


def test_what_no_type_holds_is_refused_before_the_converter_runs(tmp_path):
    checkpoint = fused("qwen3", tmp_path / "fused", grid="int4-g16")
    tree = no_converter(tmp_path / "tree")
    refused = gguf.plan(checkpoint, gguf.Options(converter=tree)).refusals
    assert "has no exact form" in refused[0]
    assert len(refused) == len(gguf.plan(checkpoint).refusals)
    for changes, flag in (
        ({"float_type": "f16"}, "--float-type"),
        ({"embedding_type": "q8_0"}, "--embedding-type"),
        ({"head_type": "bf16"}, "--head-type"),
        ({"split_max_size": "2G"}, "--split-max-size"),
    ):
        refused = gguf.plan(checkpoint, gguf.Options(converter=tree, **changes)).refusals
        assert f"leave {flag} out" in refused[0]


@needs_tree
@pytest.mark.slow
def test_types_round_activations_as_the_model_was_trained(tmp_path):
    """Under q8_k those are K-types, where the smallest exact one would round to q8_0."""
    sizes = SIZES | {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64}
    config = hf.Qwen3Config(**sizes, tie_word_embeddings=True)
    made = fused(config, tmp_path / "fused", grid="int4-channel", keep=(), grid_for={})
    value = json.loads((made.path / FILE_NAME).read_text())
    value["activations"] = {"modules": dict.fromkeys(made.quantized_names, "q8_k")}
    (made.path / FILE_NAME).write_text(json.dumps(value))
    plan = gguf.plan(Checkpoint.open(made.path, verify=False), options())
    gguf.write(plan, tmp_path / "model.gguf")
    found = read_header(tmp_path / "model.gguf").tensors.values()
    assert {info.type_name for info in found} == {"Q4_K", "F32"}
    assert {tensor.block.NAME for tensor in plan.tensors} == {"q4_k", "f32"}


def test_a_folder_that_is_no_source_tree(tmp_path):
    checkpoint = fused("qwen3", tmp_path / "fused")
    plan = gguf.plan(checkpoint, gguf.Options(converter=str(tmp_path)))
    with pytest.raises(ExportRefusedError, match=r"no source tree of llama\.cpp"):
        gguf.write(plan, tmp_path / "model.gguf")


def test_trained_rows_are_found_in_any_order(tmp_path):
    checkpoint = fused("qwen3_moe", tmp_path / "fused")
    trained = TrainedRows(checkpoint)
    names = [f"model.layers.0.self_attn.{part}_proj" for part in "qkv"]
    values = np.concatenate([checkpoint.quantized(name).dequantize() for name in names])
    shuffled = values[np.random.default_rng(0).permutation(len(values))]
    found, modules = trained.find("attn_qkv", shuffled)
    np.testing.assert_array_equal(found.dequantize(), shuffled)
    assert modules == sorted(names)
    assert trained.find("another", shuffled + np.float32(1)) is None
    with pytest.raises(ExportRefusedError, match="1 of 128 rows of attn_qkv are no trained rows"):
        trained.find("attn_qkv", np.concatenate([values[:-1], values[:1] * 2]))
    embedding = checkpoint.quantized("model.embed_tokens").dequantize()
    with pytest.raises(ExportRefusedError, match="several grids"):
        trained.find("both", np.concatenate([values, embedding]))


def test_a_file_that_lacks_trained_rows_is_refused(tmp_path):
    checkpoint, path = fused("qwen3", tmp_path / "fused"), tmp_path / "model.gguf"
    gguf.write(gguf.plan(checkpoint), path)
    assert verify_rows(path, checkpoint) == (24, len(checkpoint.quantized_names))
    info = read_header(path).tensors["blk.1.attn_v.weight"]
    with path.open("r+b") as stream:
        stream.seek(info.start)
        stream.write(b"\x00\x3c")
    with pytest.raises(
        OutputError, match=r"blk\.1\.attn_v\.weight holds rows that were not trained"
    ):
        verify_rows(path, checkpoint)


def test_zeros_without_a_sign_are_found_again(tmp_path):
    """A negative scale times 0 is one with a sign, and what a type with minima makes of it none."""
    checkpoint = fused("qwen3", tmp_path / "fused", keep=(), grid_for={})
    values = [checkpoint.quantized(name).dequantize() for name in checkpoint.quantized_names]
    assert any((np.signbit(v) & (v == 0)).any() for v in values)
    gguf.write(gguf.plan(checkpoint, gguf.Options(type="q4_1")), tmp_path / "model.gguf")
    assert verify_rows(tmp_path / "model.gguf", checkpoint)[1] == len(values)


def test_a_file_that_a_converter_laid_out_is_compared_row_by_row(tmp_path):
    checkpoint, path = fused("qwen3", tmp_path / "fused"), tmp_path / "model.gguf"
    plan = gguf.plan(checkpoint)
    marked = [*plan.metadata, kv.text(CONVERTER, "convert_hf_to_gguf.py")]
    gguf.write(dataclasses.replace(plan, metadata=marked), path)
    found = gguf.verify(path, checkpoint)
    assert len(found) == len(checkpoint.quantized_names)
    assert not any(found.values())
    assert not list(gguf.rounded_tensors(path, checkpoint))
    with pytest.raises(ExportRefusedError, match="name the source tree with --converter"):
        gguf.twin_options(path, None)
    assert gguf.twin_options(path, "tree").converter == "tree"
    info = read_header(path).tensors["blk.1.attn_v.weight"]
    with path.open("r+b") as stream:
        stream.seek(info.start)
        stream.write(b"\x00\x3c")
    found = {name: count for name, count in gguf.verify(path, checkpoint).items() if count}
    assert found == {"blk.1.attn_v.weight": 1, "model.layers.1.self_attn.v_proj": 1}
