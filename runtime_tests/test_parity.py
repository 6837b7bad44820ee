"""The promise: what was trained is what the runtimes compute, on every grid, in both formats."""

import dataclasses
import shutil
from pathlib import Path

import onnx
import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from exporters import gguf
from exporters.gguf.architectures import find_architecture
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import UserError
from lrqat.runtimes.genai import generate_tokens
from lrqat.runtimes.parity import prove
from tests.support.grids import SYMMETRIC_GRIDS
from tests.support.proofs import assert_proved, export_both


@pytest.fixture(scope="session")
def proven(train_on, text):
    """Function grid -> (trained checkpoint, its two files, their proofs)."""
    made = {}

    def make(grid):
        if grid not in made:
            folder = train_on(grid)
            files = export_both(folder)
            made[grid] = (folder, files, prove(folder, files, text[:80_000], context=128, limit=24))
        return made[grid]

    return make


@pytest.mark.slow
@pytest.mark.parametrize("grid", SYMMETRIC_GRIDS)
def test_trained_is_what_the_runtimes_compute(grid, proven):
    assert_proved(proven(grid)[2])


@pytest.mark.slow
def test_the_artefacts_carry_the_reference_perplexity(proven):
    folder, (gguf_file, onnx_folder), _ = proven("q4_0")
    recorded = Checkpoint.open(folder).manifest["reference"]["perplexity"]
    field = GGUFReader(gguf_file).get_field("lrqat.reference.perplexity")
    assert field is not None
    assert field.contents() == recorded
    model = onnx.load(f"{onnx_folder}/model.onnx", load_external_data=False)
    properties = {entry.key: entry.value for entry in model.metadata_props}
    assert float(properties["lrqat.reference.perplexity"]) == recorded


@pytest.mark.slow
def test_genai_continues_a_trained_model_as_transformers_does(proven):
    folder, (_, onnx_folder), _ = proven("q4_0")
    ids, continuation = generate_tokens(onnx_folder, "def main(argv):\n", 32)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    greedy = model.generate(torch.tensor([ids]), max_new_tokens=32, do_sample=False, pad_token_id=0)
    assert continuation == greedy[0, len(ids) :].tolist()
    assert len(continuation) == 32


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


def forget_row_order(patch):
    """Let planner and reader believe that llama.cpp keeps Hugging Face's order of rows."""

    def forgetful(config):
        return dataclasses.replace(find_architecture(config), row_order=lambda config, name: None)

    for module in ("planning", "verification"):
        patch.setattr(f"exporters.gguf.{module}.find_architecture", forgetful)


@pytest.mark.slow
def test_a_graph_without_row_permutation_fails_l1(proven, text, monkeypatch):
    """The classic mistake of a GGUF converter: right bytes by its own reader, wrong model."""
    folder, (file, _), _ = proven("q4_0")
    forget_row_order(monkeypatch)
    proof = prove_one(folder, file, text)
    assert not proof.verdicts["L1"]
    assert not proof.passed


def copied(path, folder):
    """A copy of an exported file or folder, to be spoilt."""
    copy = shutil.copytree if Path(path).is_dir() else shutil.copy
    return str(copy(path, folder / Path(path).name))


def flip_bit(path, offset):
    """Flip the lowest bit of the byte at `offset`."""
    content = bytearray(Path(path).read_bytes())
    content[offset] ^= 1
    Path(path).write_bytes(content)


def prove_one(checkpoint, file, text):
    return prove(checkpoint, [str(file)], text[:40_000], context=128, limit=4)[0]


@pytest.mark.slow
def test_one_scale_off_by_one_ulp_fails_l0_in_gguf(proven, text, tmp_path):
    folder, (file, _), _ = proven("q4_0")
    wrong = copied(file, tmp_path)
    name = "blk.1.ffn_down.weight"
    tensor = next(t for t in GGUFReader(file).tensors if t.name == name)
    flip_bit(wrong, int(tensor.data_offset))  # a Q4_0 block starts with its fp16 scale
    proof = prove_one(folder, wrong, text)
    assert proof.mismatches == {name: 1}
    assert not proof.passed


@pytest.mark.slow
@pytest.mark.parametrize("part", ["weight", "weight_scale"])
def test_one_bit_fails_l0_in_onnx(part, proven, text, tmp_path):
    folder, (_, onnx_folder), _ = proven("q4_0")
    wrong = copied(onnx_folder, tmp_path)
    model = onnx.load(f"{wrong}/model.onnx", load_external_data=False)
    name = f"model.layers.1.mlp.down_proj.{part}"
    tensor = next(t for t in model.graph.initializer if t.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    flip_bit(f"{wrong}/{place['location']}", int(place["offset"]))
    proof = prove_one(folder, wrong, text)
    assert proof.mismatches == {name: 1}
    assert not proof.passed


def spoil_graph(onnx_folder, tmp_path, change):
    """A copy of the folder whose graph `change` has edited in place."""
    wrong = copied(onnx_folder, tmp_path)
    model = onnx.load(f"{wrong}/model.onnx", load_external_data=False)
    change(model.graph)
    Path(wrong, "model.onnx").write_bytes(model.SerializeToString())
    return wrong


@pytest.mark.slow
def test_integers_under_another_tensors_scales_fail_every_level(proven, text, tmp_path):
    """Every byte of every tensor is right; two of the DequantizeLinear have swapped scales."""

    def swap(graph):
        nodes = {n.input[0]: n for n in graph.node if n.op_type == "DequantizeLinear"}
        up, gate = (nodes[f"model.layers.0.mlp.{p}_proj.weight"] for p in ("up", "gate"))
        up.input[1], gate.input[1] = gate.input[1], up.input[1]

    folder, (_, onnx_folder), _ = proven("q4_0")
    proof = prove_one(folder, spoil_graph(onnx_folder, tmp_path, swap), text)
    assert proof.verdicts == {"L0": False, "L1": False, "L2": False}
    assert len(proof.mismatches) == 2


@pytest.mark.slow
def test_a_wrong_graph_over_the_right_bytes_fails_l1(proven, text, tmp_path):
    """Sine and cosine of the rotary embedding swapped: L0 cannot see it."""

    def swap(graph):
        for node in graph.node:
            node.op_type = {"Sin": "Cos", "Cos": "Sin"}.get(node.op_type, node.op_type)

    folder, (_, onnx_folder), _ = proven("q4_0")
    proof = prove_one(folder, spoil_graph(onnx_folder, tmp_path, swap), text)
    assert proof.verdicts == {"L0": True, "L1": False, "L2": False}


@pytest.mark.slow
def test_metadata_that_is_not_the_models_fails(proven, text, tmp_path):
    """An epsilon or rotary base that is slightly off would stay within L2's tolerance."""
    folder, (file, _), _ = proven("q4_0")
    wrong = copied(file, tmp_path)
    reader = GGUFReader(wrong, "r+")
    field = reader.fields["llama.attention.layer_norm_rms_epsilon"]
    field.parts[field.data[0]][0] *= 2
    reader.data.flush()
    proof = prove_one(folder, wrong, text)
    assert proof.mismatches == {"llama.attention.layer_norm_rms_epsilon": 1}
    assert not proof.passed


@pytest.mark.slow
def test_rows_that_were_not_permuted_fail_l0_and_l2(proven, text, tmp_path):
    """As a converter that forgets llama.cpp's order of rows would write them."""
    folder, _, _ = proven("q4_0")
    wrong = tmp_path / "unpermuted.gguf"
    with pytest.MonkeyPatch.context() as patch:
        forget_row_order(patch)
        gguf.write(gguf.plan(Checkpoint.open(folder)), wrong)
    proof = prove_one(folder, wrong, text)
    assert {name.split(".")[2] for name in proof.mismatches} == {"attn_q", "attn_k"}
    assert not proof.verdicts["L0"]
    assert not proof.verdicts["L2"]


def test_only_exported_files_can_be_proved(fused_checkpoint, text):
    with pytest.raises(UserError, match=r"neither a \.gguf file nor an ONNX folder"):
        prove(fused_checkpoint, [str(fused_checkpoint)], text)
