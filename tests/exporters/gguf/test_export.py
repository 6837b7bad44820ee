"""Planning, refusing and writing GGUF files."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from gguf import GGUFReader

from exporters import gguf
from exporters.gguf.file.header import read_header
from lrqat.checkpoint.manifest import FILE_NAME, sha256_of
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import CheckpointError, ExportRefusedError
from tests.support.paths import ROOT, shared_model


@pytest.fixture
def checkpoint(fused_checkpoint):
    return Checkpoint.open(fused_checkpoint)


def edited(fused, folder, file="config.json", **entries):
    """A copy of a fused checkpoint with entries of one JSON file replaced (None: removed)."""
    shutil.copytree(fused, folder, dirs_exist_ok=True)
    value = json.loads((folder / file).read_text())
    value.update(entries)
    (folder / file).write_text(json.dumps({k: v for k, v in value.items() if v is not None}))
    return Checkpoint.open(folder, verify=False)


def test_the_plan_lists_every_tensor_and_writes_nothing(checkpoint):
    before = sorted(checkpoint.path.iterdir())
    plan = gguf.plan(checkpoint)
    assert sorted(checkpoint.path.iterdir()) == before
    assert not plan.refusals
    origins = {tensor.source.origin for tensor in plan.tensors}
    assert origins == {*checkpoint.quantized_names, *checkpoint.floating_names}
    for tensor in plan.tensors:
        expected = "q4_0" if tensor.source.quantized else tensor.block.NAME
        assert expected == tensor.block.NAME
        assert len(tensor.source.shape) == 2 or tensor.block.NAME == "f32"
    as_json = json.loads(json.dumps(plan.to_json()))
    assert as_json["tensors"][0]["name"] == "token_embd.weight"
    assert as_json["metadata"]["tokenizer.ggml.tokens"] == 512
    lines = plan.summary()
    assert any("attn_q" in line and "rows reordered" in line for line in lines)
    assert gguf.default_name(checkpoint) == "model-q4_0.gguf"
    assert gguf.default_name(checkpoint, gguf.Options(type="f32")) == "model-f32.gguf"


@pytest.mark.parametrize(
    "options",
    [
        gguf.Options(),
        gguf.Options(type="q4_0", float_type="f32"),
        gguf.Options(type="q8_0"),
        gguf.Options(type="f32"),
        gguf.Options(float_type="bf16"),
    ],
    ids=lambda options: f"{options.type}-{options.float_type}",
)
def test_every_tensor_is_the_checkpoints(options, checkpoint, tmp_path):
    plan, path = gguf.plan(checkpoint, options), tmp_path / "model.gguf"
    seen = []
    report = gguf.write(plan, path, progress=seen.append)
    assert seen == [tensor.source.name for tensor in plan.tensors]
    assert report.bytes == path.stat().st_size > plan.tensor_bytes
    assert report.sha256 == sha256_of(path)
    assert report.quantized == len(checkpoint.quantized_names)
    assert not any(gguf.verify(path, checkpoint).values())
    rounded = sum(check.rounded for check in gguf.check_tensors(path, checkpoint))
    assert rounded == report.rounded
    assert bool(rounded) == (options.float_type == "bf16")
    assert bool(rounded) == any("rounded, as asked" in line for line in plan.summary())
    json.dumps(report.to_json())


@pytest.mark.parametrize(
    ("model", "keep"),
    [
        (shared_model("stories260k").values[0], ("down_proj",)),
        (shared_model("pycode-8m").values[0], ()),
    ],
    ids=["stories260k", "pycode-8m"],
)
def test_shared_models_are_exact(model, keep, make_fused, tmp_path):
    if not model.is_dir():
        pytest.skip("no shared models")
    checkpoint = Checkpoint.open(make_fused("q4_0", source=model, keep=keep))
    report = gguf.write(gguf.plan(checkpoint), tmp_path / "model.gguf")
    found = gguf.verify(tmp_path / "model.gguf", checkpoint)
    assert len(found) == report.tensors
    assert sum(found.values()) == 0


@pytest.mark.parametrize("grid", ["q8_0", "int4-g128", "int4-channel"])
def test_other_grids(grid, make_fused, tmp_path):
    checkpoint = Checkpoint.open(make_fused(grid))
    plan = gguf.plan(checkpoint)
    expected = "q8_0" if grid == "q8_0" else "q4_0"
    assert {t.block.NAME for t in plan.tensors if t.source.quantized} == {expected}
    gguf.write(plan, tmp_path / "model.gguf")
    assert not any(gguf.verify(tmp_path / "model.gguf", checkpoint).values())


def test_gguf_py_reads_the_same(checkpoint, tmp_path):
    plan, path = gguf.plan(checkpoint), tmp_path / "model.gguf"
    gguf.write(plan, path)
    reader, header = GGUFReader(path), read_header(path)
    assert [tensor.name for tensor in reader.tensors] == list(header.tensors)
    for tensor in reader.tensors:
        info = header.tensors[tensor.name]
        assert (tensor.data_offset, tensor.n_bytes) == (info.start, info.nbytes)
        assert tuple(tensor.shape[::-1].tolist()) == info.shape
    for key, value in header.metadata.items():
        assert np.array_equal(reader.fields[key].contents(), value), key


def test_metadata(make_fused, tiny_model, tmp_path):
    reference = {"perplexity": 12.5, "tokens": 1000, "rule": "llama-perplexity", "bad": object}
    folder = tmp_path / "fused"
    checkpoint = edited(
        make_fused("q4_0"),
        folder,
        FILE_NAME,
        reference={k: v for k, v in reference.items() if k != "bad"},
        training={"data_sha256": "ab" * 32},
    )
    gguf.write(gguf.plan(checkpoint), tmp_path / "model.gguf")
    found = read_header(tmp_path / "model.gguf").metadata
    expected = {
        "general.architecture": "llama",
        "general.file_type": 2,
        "general.quantization_version": 2,
        "llama.block_count": 2,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 32,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "lrqat.grid": "q4_0",
        "lrqat.base_model": tiny_model.name,
        "lrqat.data_sha256": "ab" * 32,
        "lrqat.reference.perplexity": 12.5,
        "lrqat.reference.tokens": 1000,
        "lrqat.reference.rule": "llama-perplexity",
        "lrqat.checkpoint_sha256": sha256_of(folder / FILE_NAME),
    }
    assert {key: found.get(key) for key in expected} == expected


def test_same_input_same_bytes(fused_checkpoint, tmp_path):
    reports = []
    for name in ("a", "b"):
        plan = gguf.plan(Checkpoint.open(fused_checkpoint))
        reports.append(gguf.write(plan, tmp_path / name))
    assert reports[0].sha256 == reports[1].sha256


def test_f16_only_where_nothing_is_lost(make_fused, tiny_model, tmp_path):
    import torch

    from lrqat.models import hub

    model = hub.load_model(str(tiny_model), dtype=torch.float32)
    model.get_input_embeddings().weight.data = (
        model.get_input_embeddings().weight.data.half().float()
    )
    model.save_pretrained(tmp_path / "half")
    hub.load_tokenizer(tiny_model).save_pretrained(tmp_path / "half")
    checkpoint = Checkpoint.open(make_fused("q4_0", source=tmp_path / "half"))
    types = {tensor.source.name: tensor.block.NAME for tensor in gguf.plan(checkpoint).tensors}
    assert types["token_embd.weight"] == "f16"
    assert types["output.weight"] == "f32"
    assert types["output_norm.weight"] == "f32"


def test_a_row_that_fits_no_block_is_refused(make_fused, tmp_path):
    from lrqat.models.small_llama import make_untrained_model

    source = tmp_path / "narrow"
    model = make_untrained_model(
        512, hidden=64, intermediate=172, layers=1, heads=4, kv_heads=2, seed=0
    )
    model.save_pretrained(source)
    shutil.copy(make_fused("q4_0") / "tokenizer.json", source)
    checkpoint = Checkpoint.open(make_fused("int4-channel", source=source))
    plan, path = gguf.plan(checkpoint), tmp_path / "model.gguf"
    with pytest.raises(ExportRefusedError) as caught:
        gguf.write(plan, path)
    for said in ("model.layers.0.mlp.down_proj", "172", "blocks of 32", "--keep", "ONNX"):
        assert said in str(caught.value)
    assert any(line.startswith("refused:") for line in plan.summary())
    assert not path.exists()
    assert not list(tmp_path.glob(".*"))
    twin = gguf.plan(checkpoint, gguf.Options(type="f32"))
    gguf.write(twin, path)
    assert not any(gguf.verify(path, checkpoint).values())


def test_a_type_too_narrow_names_the_one_that_fits(make_fused):
    plan = gguf.plan(Checkpoint.open(make_fused("q8_0")), gguf.Options(type="q4_0"))
    assert "-127..127" in plan.refusals[0]
    assert "takes q8_0" in plan.refusals[0]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"architectures": ["FooForCausalLM"]}, "LlamaForCausalLM"),
        ({"architectures": None}, "LlamaForCausalLM"),
        ({"hidden_act": "gelu"}, "silu"),
        (
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "dynamic",
        ),
        ({"sliding_window": 16}, "slides"),
        ({"num_hidden_layers": 3}, "lacks"),
        ({"num_hidden_layers": 1}, "no name"),
    ],
)
def test_configurations_are_refused(entries, said, fused_checkpoint, tmp_path):
    plan = gguf.plan(edited(fused_checkpoint, tmp_path / "fused", **entries))
    assert said in " ".join(plan.refusals)


@pytest.mark.parametrize(
    "entries",
    [
        {"num_attention_heads": "four"},
        {"num_attention_heads": 8},
        {"rms_norm_eps": -1},
        {"vocab_size": 4096},
        {"rope_parameters": [1]},
        {"rope_parameters": {"rope_type": "default"}, "rope_theta": None},
        {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
    ],
)
def test_configurations_that_make_no_sense(entries, fused_checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"config\.json"):
        gguf.plan(edited(fused_checkpoint, tmp_path / "fused", **entries))


def test_options_name_the_nearest_type():
    with pytest.raises(ExportRefusedError, match="did you mean q4_0"):
        gguf.Options(type="q4-0")
    with pytest.raises(ExportRefusedError, match="did you mean bf16"):
        gguf.Options(float_type="bfloat16")


def test_verify_counts_what_differs(checkpoint, make_fused, tmp_path):
    path = tmp_path / "model.gguf"
    gguf.write(gguf.plan(checkpoint), path)
    info = read_header(path).tensors["blk.0.attn_q.weight"]
    with path.open("r+b") as stream:
        stream.seek(info.start)
        stream.write(b"\xff\x3c")  # one scale
        stream.seek(info.start + 2)
        byte = stream.read(1)[0]
        stream.seek(info.start + 2)
        stream.write(bytes([byte ^ 0x11]))  # two integers
    found = gguf.verify(path, checkpoint)
    assert {name: count for name, count in found.items() if count} == {"blk.0.attn_q.weight": 3}
    other = gguf.verify(path, Checkpoint.open(make_fused("q8_0")))
    assert sum(other.values()) > 1000


def test_needs_no_torch(checkpoint, tmp_path):
    code = (
        "import sys; from exporters import gguf; from lrqat.checkpoint.reader import Checkpoint\n"
        "gguf.write(gguf.plan(Checkpoint.open(sys.argv[1])), sys.argv[2])\n"
        "assert not {'torch', 'transformers'} & set(sys.modules), 'torch was imported'"
    )
    command = [sys.executable, "-c", code, str(checkpoint.path), str(tmp_path / "model.gguf")]
    subprocess.run(command, cwd=ROOT, timeout=60, check=True)
