"""Which type each tensor of a whole plan gets, what the plan says of it, and the file's name."""

import json
import math
import shutil

import pytest
from safetensors.numpy import load_file, save_file

from exporters import gguf
from exporters.gguf.file.header import read_header
from exporters.gguf.file_type import find_file_type
from lrqat.checkpoint.manifest import FILE_NAME
from lrqat.checkpoint.reader import ACTIVATION_FILE, Checkpoint
from lrqat.errors import RuntimeUnavailableError


def types_of(plan):
    assert not plan.refusals, plan.refusals
    return {tensor.source.name: tensor.block.NAME for tensor in plan.tensors}


def exported(checkpoint, path, options=None):
    report = gguf.write(gguf.plan(checkpoint, options), path)
    assert not any(gguf.verify(path, checkpoint).values())
    return report


def test_several_grids_give_several_types(make_small, tmp_path):
    checkpoint = make_small("q4_0", {"down_proj": "q6_k", "o_proj": "q5_0"})
    types = types_of(gguf.plan(checkpoint))
    assert types["blk.0.ffn_down.weight"] == "q6_k"
    assert types["blk.0.attn_output.weight"] == "q5_0"
    assert types["blk.0.ffn_up.weight"] == "q4_0"
    assert gguf.default_name(checkpoint) == "model-q4_0-q6_k-q5_0.gguf"
    assert find_file_type(gguf.plan(checkpoint)) == 2
    exported(checkpoint, tmp_path / "model.gguf")
    refused = gguf.plan(checkpoint, gguf.Options(type="q4_0")).refusals
    assert len(refused) == 2
    assert "ask for --type auto, which takes q6_k" in " ".join(refused)
    exported(checkpoint, tmp_path / "twin.gguf", gguf.Options(type="f32"))


def test_the_file_type_is_that_of_most_weights_not_of_most_bytes(make_small):
    checkpoint = make_small("q2_0", {"down_proj": "q8_0", "up_proj": "q8_0"})
    plan = gguf.plan(checkpoint)
    weights = {t.block.NAME: 0 for t in plan.tensors}
    for tensor in plan.tensors:
        weights[tensor.block.NAME] += math.prod(tensor.source.shape)
    assert weights["q2_0"] > weights["q8_0"]
    assert find_file_type(plan) == 41
    assert gguf.default_name(checkpoint) == "model-q2_0-q8_0.gguf"


@pytest.mark.parametrize(
    ("embedding", "head"), [("q8_0", "q6_k"), ("tq2_0", "iq4_nl"), ("q2_0", "mxfp4")]
)
def test_trained_embeddings_and_heads(embedding, head, make_small, tmp_path):
    grids = {"embed_tokens": embedding, "lm_head": head}
    checkpoint = make_small("q4_k", grids)
    assert checkpoint.kind("model.embed_tokens") == "embedding"
    types = types_of(gguf.plan(checkpoint))
    assert types["token_embd.weight"] == embedding
    assert types["output.weight"] == head
    assert types["blk.0.attn_q.weight"] == "q4_k"
    exported(checkpoint, tmp_path / "model.gguf")


def test_a_trained_table_that_is_also_the_head_is_stored_once(make_small, tmp_path):
    checkpoint = make_small("q4_0", {"embed_tokens": "q6_k"}, tied=True)
    assert checkpoint.config["tie_word_embeddings"]
    types = types_of(gguf.plan(checkpoint))
    assert types["token_embd.weight"] == "q6_k"
    assert "output.weight" not in types
    exported(checkpoint, tmp_path / "model.gguf")


def test_rows_that_fit_no_small_block_go_to_a_larger_one_and_the_plan_says_so(make_small, tmp_path):
    checkpoint = make_small("int3-channel", intermediate=576)
    plan = gguf.plan(checkpoint)
    types = types_of(plan)
    assert types["blk.0.ffn_down.weight"] == "q4_0"
    assert types["blk.0.ffn_up.weight"] == "q3_k"
    notes = {tensor.source.name: tensor.note for tensor in plan.tensors if tensor.note}
    assert list(notes) == ["blk.0.ffn_down.weight"]
    note = notes["blk.0.ffn_down.weight"]
    assert note == (
        "rows of 576 weights do not divide into Q3_K's blocks of 256: 4.5 bits per weight instead "
        "of 3.4375, and as exact"
    )
    assert any(note in line for line in plan.summary())
    assert gguf.default_name(checkpoint) == "model-q3_k-q4_0.gguf"
    report = exported(checkpoint, tmp_path / "model.gguf")
    assert report.rounded == 0


@pytest.mark.parametrize(
    ("grid", "best"),
    [
        ("tq2_0", "tq2_0"),  # and not the smaller tq1_0: who trains on a type gets it
        ("int2-channel", "q2_0"),
        ("int4-channel", "q4_0"),  # and not q4_k, which has the same size
        ("int4-asym-channel", "q4_k"),
        ("int3-asym-g64", "q4_0"),
        ("int6-channel", "q6_k"),
    ],
)
def test_auto_takes_the_grids_own_type_or_the_smallest(grid, best, make_small, tmp_path):
    checkpoint = make_small(grid)
    plan = gguf.plan(checkpoint)
    assert {t.block.NAME for t in plan.tensors if t.source.quantized} == {best}
    assert not any(tensor.note for tensor in plan.tensors)
    exported(checkpoint, tmp_path / "model.gguf")


@pytest.mark.parametrize("kind", ["tq1_0", "q2_k", "q3_k", "q4_1", "q5_k", "q8_0"])
def test_a_type_that_was_asked_for_is_taken_where_it_is_exact(kind, make_small, tmp_path):
    checkpoint = make_small("tq2_0")
    options = gguf.Options(type=kind)
    assert gguf.default_name(checkpoint, options) == f"model-{kind}.gguf"
    exported(checkpoint, tmp_path / "model.gguf", options)
    found = read_header(tmp_path / "model.gguf").tensors["blk.0.ffn_up.weight"]
    assert found.type.name.lower() == kind


def test_a_grid_without_any_exact_type_names_the_nearest_three(make_small):
    checkpoint = make_small("int4-g16")
    refusal = gguf.plan(checkpoint).refusals[0]
    assert "every 16 weights, Q4_1 only one for 32" in refusal
    assert "Q5_0" in refusal
    assert "TQ1_0" not in refusal
    assert "--keep" in refusal
    assert gguf.default_name(checkpoint) == "model-none.gguf"


def with_activations(checkpoint, folder, grid):
    shutil.copytree(checkpoint.path, folder)
    value = json.loads((folder / FILE_NAME).read_text())
    value["activations"] = {"modules": dict.fromkeys(checkpoint.quantized_names, grid)}
    (folder / FILE_NAME).write_text(json.dumps(value))
    return Checkpoint.open(folder, verify=False)


def test_a_model_trained_under_one_rounding_gets_types_that_round_so(make_small, tmp_path):
    checkpoint = make_small("int4-channel")
    trained = with_activations(checkpoint, tmp_path / "k", "q8_k")
    assert set(types_of(gguf.plan(trained)).values()) == {"q4_k", "f32"}
    assert gguf.default_name(trained) == "model-q4_k.gguf"
    exported(trained, tmp_path / "model.gguf")
    refusal = gguf.plan(trained, gguf.Options(type="q4_0")).refusals[0]
    assert "activations on q8_k" in refusal
    assert "rounds them to q8_0 when it multiplies with Q4_0" in refusal
    assert "takes q4_k" in refusal
    trained = with_activations(checkpoint, tmp_path / "0", "q8_0")
    assert set(types_of(gguf.plan(trained)).values()) == {"q4_0", "f32"}
    trained = with_activations(checkpoint, tmp_path / "ort", "ort-level4-g128")
    assert "does not round them so" in gguf.plan(trained).refusals[0]


def with_scale(checkpoint, folder, value):
    """A copy whose first scale of the down projection is `value`."""
    shutil.copytree(checkpoint.path, folder)
    (file,) = (f for f in folder.glob("*.safetensors") if f.name != ACTIVATION_FILE)
    tensors = load_file(file)
    tensors["model.layers.0.mlp.down_proj.weight_scale"][0, 0] = value
    save_file(tensors, file)
    return Checkpoint.open(folder, verify=False)


@pytest.mark.parametrize(
    ("grid", "kind", "most", "beyond", "others"),
    [
        ("int4-g64", "q4_1", 8188, 8192, "q4_0 (q5_0, q8_0 would be exact too)"),
        ("int5-g32", "q5_1", 4094, 4096, "q5_0 (q8_0 would be exact too)"),
    ],
)
def test_a_scale_whose_minimum_is_no_float16_is_refused_by_the_plan(
    grid, kind, most, beyond, others, make_small, tmp_path
):
    checkpoint, options = make_small(grid), gguf.Options(type=kind)
    largest = with_scale(checkpoint, tmp_path / "largest", -most)
    exported(largest, tmp_path / "largest.gguf", options)
    above = with_scale(checkpoint, tmp_path / "above", beyond)
    (refusal,) = gguf.plan(above, options).refusals
    q_min = {"q4_1": -8, "q5_1": -16}[kind]
    assert refusal.startswith(
        f"model.layers.0.mlp.down_proj (256 x 512, grid {grid}) has no exact form: {grid}'s scale "
        f"{beyond} times {q_min} leaves {kind.upper()}'s float16 minima. Instead, ask for --type "
        f"auto, which takes {others}; or train"
    )
    assert set(types_of(gguf.plan(above)).values()) == {others[:4], "f32"}
    exported(above, tmp_path / "above.gguf")


def test_scales_are_read_for_the_types_that_need_them_alone(make_small, monkeypatch):
    """And not with the integers: what a plan reads is bounded by the scales of a layer."""
    checkpoint, read = make_small("int4-g64"), []
    scales = Checkpoint.scales
    monkeypatch.setattr(Checkpoint, "scales", lambda c, name: read.append(name) or scales(c, name))
    monkeypatch.setattr(Checkpoint, "packed", None)
    for kind in ("auto", "q4_0", "q8_0"):
        assert types_of(gguf.plan(checkpoint, gguf.Options(type=kind)))
        assert not read
    assert types_of(gguf.plan(checkpoint, gguf.Options(type="q4_1")))
    assert read == sorted(checkpoint.quantized_names, key=read.index)


def test_a_name_that_llama_cpp_would_not_load_is_left_out(fused_checkpoint, tmp_path):
    llama_cpp = pytest.importorskip("lrqat.runtimes.llama_cpp.runtime")
    checkpoint = Checkpoint.open(fused_checkpoint)
    checkpoint.manifest["base_model"]["name"] = "me/my-Phi3-from-scratch"
    plan = gguf.plan(checkpoint)
    assert any("for a Phi 3" in note for note in plan.notes)
    assert "general.name" not in {entry.key for entry in plan.metadata}
    gguf.write(plan, tmp_path / "model.gguf")
    try:
        llama_cpp.LlamaCpp.open(tmp_path / "model.gguf").close()
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    checkpoint.manifest["base_model"]["name"] = "me/another"
    assert "general.name" in {entry.key for entry in gguf.plan(checkpoint).metadata}
