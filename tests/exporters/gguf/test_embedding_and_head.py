"""The types of an embedding and a head that were not trained on a grid."""

import ctypes
import json
import shutil

import numpy as np
import pytest
from gguf import GGMLQuantizationType, dequantize
from safetensors.torch import load_file, save_file

from exporters import gguf
from exporters.gguf.file.header import read_header
from exporters.gguf.tensors.rounded_values import ROUNDED, quantize_q6_k, value_blocks
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import ExportRefusedError, RuntimeUnavailableError

EMBEDDING, HEAD = "token_embd.weight", "output.weight"


def by_llama_cpp(kind, values):
    """Bytes of the rows of `values` by llama.cpp's own quantiser."""
    from lrqat.runtimes.llama_cpp import ffi

    try:
        library = ffi.load_library()
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    function = getattr(library, {"q6_k": "quantize_q6_K", "q8_0": "quantize_q8_0"}[kind])
    function.restype = ctypes.c_size_t
    function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * 2, ctypes.c_void_p]
    out = np.empty_like(ROUNDED[kind].pack(values))
    assert function(values.ctypes.data, out.ctypes.data, *values.shape, None) == out.nbytes
    return out


def samples():
    rng = np.random.default_rng(0)
    shape = (16, 1024)
    yield "normal", rng.standard_normal(shape)
    yield "heavy tails", rng.standard_t(3, shape)
    yield "small", rng.laplace(size=shape) * 0.02
    yield "few", rng.standard_normal(shape) * (rng.random(shape) < 0.05)
    yield "uniform", rng.uniform(-1, 1, shape)
    yield "one outlier", np.where(np.arange(1024) == 3, 1e4, rng.standard_normal(shape))
    yield "underflow", rng.standard_normal(shape) * 1e-7


@pytest.mark.parametrize(("name", "values"), samples(), ids=[name for name, _ in samples()])
def test_q6_k_is_as_good_as_llama_cpps_and_q8_0_the_same(name, values):
    values = values.astype(np.float32)
    theirs, ours = by_llama_cpp("q6_k", values), quantize_q6_k(values)
    errors = [
        np.square(dequantize(data, GGMLQuantizationType.Q6_K) - values, dtype=np.float64).sum()
        for data in (ours, theirs)
    ]
    assert errors[0] <= 1.01 * errors[1]
    # Elsewhere the two choose between scales that are as good, or between codes of zeros.
    assert (ours == theirs).mean() > 0.99 or name in ("few", "one outlier", "underflow")
    np.testing.assert_array_equal(by_llama_cpp("q8_0", values), ROUNDED["q8_0"].pack(values))


@pytest.mark.parametrize("kind", ROUNDED)
def test_rounding_in_pieces_and_of_zeros(kind, monkeypatch):
    values = np.random.default_rng(1).standard_normal((7, 512)).astype(np.float32)
    values[2] = 0
    whole = ROUNDED[kind].pack(values)
    monkeypatch.setattr("exporters.gguf.tensors.rounded_values._CHUNK_WEIGHTS", 1024)
    np.testing.assert_array_equal(ROUNDED[kind].pack(values), whole)
    assert not ROUNDED[kind].unpack(whole)[2].any()
    from lrqat.runtimes.llama_cpp.runtime import dequantize_row

    in_c = kind.replace("_k", "_K")
    found = dequantize_row(in_c, whole.tobytes(), values.size).reshape(values.shape)
    np.testing.assert_array_equal(found, ROUNDED[kind].unpack(whole))


@pytest.fixture(scope="module")
def bfloat16_checkpoint(make_fused, tiny_model, tmp_path_factory):
    """As most models are published: embedding and head in bfloat16, with values beyond float16."""
    import torch

    from lrqat.models import hub

    folder = tmp_path_factory.mktemp("bf16") / "model"
    model = hub.load_model(str(tiny_model), dtype=torch.float32)
    torch.manual_seed(0)
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        weight = torch.nn.init.normal_(torch.empty_like(module.weight), std=0.05)
        weight[::7] *= 1e-6
        module.weight.data = weight.bfloat16().float()
    model.config.vocab_size = model.get_input_embeddings().weight.shape[0]
    model.save_pretrained(folder)
    hub.load_tokenizer(tiny_model).save_pretrained(folder)
    return Checkpoint.open(make_fused("q4_0", source=folder))


def types_of(plan):
    return {tensor.source.name: tensor.block.NAME for tensor in plan.tensors}


def logits(path):
    try:
        from lrqat.runtimes.llama_cpp.runtime import LlamaCpp

        with LlamaCpp.open(path) as llama:
            return llama.logits(np.arange(64))
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))


def test_by_default_an_embedding_is_bf16_where_that_loses_nothing(bfloat16_checkpoint, tmp_path):
    plan = gguf.plan(bfloat16_checkpoint)
    found = types_of(plan)
    assert (found[EMBEDDING], found[HEAD]) == ("bf16", "f32")
    report = gguf.write(plan, tmp_path / "auto.gguf")
    assert report.rounded == 0
    wide = gguf.plan(bfloat16_checkpoint, gguf.Options(embedding_type="f32"))
    gguf.write(wide, tmp_path / "f32.gguf")
    np.testing.assert_array_equal(logits(tmp_path / "auto.gguf"), logits(tmp_path / "f32.gguf"))


@pytest.mark.parametrize(("embedding", "head"), [("q8_0", "q6_k"), ("q6_k", "bf16")])
def test_rounded_as_asked(embedding, head, tiny_model, make_fused, tmp_path):
    options = gguf.Options(embedding_type=embedding, head_type=head)
    source = make_fused("q4_0", source=wide_model(tiny_model, tmp_path / "wide"))
    checkpoint, path = Checkpoint.open(source), tmp_path / "model.gguf"
    plan = gguf.plan(checkpoint, options)
    report = gguf.write(plan, path)
    assert not any(gguf.verify(path, checkpoint).values())
    rounded = {c.name: c.rounded for c in gguf.check_tensors(path, checkpoint) if c.rounded}
    assert rounded.keys() == {EMBEDDING, HEAD}
    assert report.rounded == sum(rounded.values())
    assert sum("rounded, as asked" in line for line in plan.summary()) == 2
    header = read_header(path)
    for name, kind in ((EMBEDDING, embedding), (HEAD, head)):
        assert header.tensors[name].type.name.lower() == kind
        (tensor,) = (t for t in plan.tensors if t.source.name == name)
        expected = tensor.source.read_values(checkpoint)
        kept = value_blocks()[kind].unpack(header.tensors[name].read())
        assert 0 < np.abs(kept - expected).max() < 0.02 * np.abs(expected).max()
    exact = gguf.plan(checkpoint, gguf.Options(embedding_type="f32", head_type="f32"))
    gguf.write(exact, tmp_path / "exact.gguf")
    difference = np.abs(logits(path) - logits(tmp_path / "exact.gguf")).max()
    assert 0 < difference < 0.1
    with path.open("r+b") as stream:  # a changed byte is no rounding
        stream.seek(header.tensors[HEAD].start)
        byte = stream.read(1)[0]
        stream.seek(header.tensors[HEAD].start)
        stream.write(bytes([byte ^ 0x11]))
    assert gguf.verify(path, checkpoint)[HEAD]


def wide_model(tiny_model, folder):
    """A model whose rows are whole blocks of 256."""
    from lrqat.models.small_llama import make_untrained_model

    model = make_untrained_model(
        512, hidden=256, intermediate=256, layers=1, heads=4, kv_heads=2, seed=0
    )
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, folder)
    return folder


def test_the_plan_shows_what_each_type_costs(bfloat16_checkpoint):
    plan = gguf.plan(bfloat16_checkpoint)
    by_name = {choice.name: choice for choice in plan.choices}
    embedding = by_name[EMBEDDING]
    assert embedding.bytes == {
        "q8_0": 512 * 128 // 32 * 34,  # rows of 128 are no whole blocks of Q6_K
        "bf16": 512 * 128 * 2,
        "f16": 512 * 128 * 2,
        "f32": 512 * 128 * 4,
    }
    assert (embedding.chosen, embedding.changed["bf16"], embedding.changed["f32"]) == ("bf16", 0, 0)
    assert embedding.changed["f16"] > 1000
    (line,) = (line for line in plan.summary() if line.startswith("choice: output.weight is f32"))
    assert "--head-type may be q8_0 69,632 bytes (rounds nearly all values)" in line
    json.dumps(plan.to_json())


def test_types_that_do_not_fit_are_refused(bfloat16_checkpoint):
    plan = gguf.plan(bfloat16_checkpoint, gguf.Options(head_type="q6_k"))
    assert "lm_head.weight as q6_k: rows of 128" in plan.refusals[0]
    with pytest.raises(ExportRefusedError, match="did you mean q6_k"):
        gguf.Options(embedding_type="q6k")
    with pytest.raises(ExportRefusedError, match="every tensor f32"):
        gguf.Options(type="f32", head_type="q8_0")


def test_a_tied_head_has_the_embeddings_type(bfloat16_checkpoint, tmp_path):
    folder = tmp_path / "tied"
    shutil.copytree(bfloat16_checkpoint.path, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tied = Checkpoint.open(folder, verify=False)
    found = types_of(gguf.plan(tied))
    assert HEAD not in found
    assert found[EMBEDDING] == "f32"  # it is multiplied too: bf16 would round activations
    refused = gguf.plan(tied, gguf.Options(head_type="q8_0")).refusals
    assert "ask for --embedding-type q8_0" in refused[0]
    both = gguf.plan(tied, gguf.Options(embedding_type="q8_0", head_type="q8_0"))
    assert not both.refusals
    assert types_of(both)[EMBEDDING] == "q8_0"


def test_what_was_trained_keeps_its_type(tiny_model, tmp_path):
    import torch

    from lrqat.models import fuse, hub, preparation, surgery

    model = hub.load_model(str(tiny_model), dtype=torch.float32)
    grids = {"lm_head": "q8_0", "embed_tokens": "q8_0"}
    plan = surgery.plan_surgery(model, "q4_0", grid_for=grids)
    preparation.prepare(model, plan, preparation.Settings(rank=4))
    base = {"name": "tiny", "revision": None, "dtype": "float32"}
    fuse.fuse(model, hub.load_tokenizer(tiny_model), tmp_path / "f", plan=plan, base_model=base)
    checkpoint = Checkpoint.open(tmp_path / "f")
    agreed = gguf.plan(checkpoint, gguf.Options(embedding_type="q8_0", head_type="q8_0"))
    assert not agreed.refusals
    assert not agreed.choices
    assert (types_of(agreed)[EMBEDDING], types_of(agreed)[HEAD]) == ("q8_0", "q8_0")
    refused = gguf.plan(checkpoint, gguf.Options(embedding_type="f16", head_type="q6_k")).refusals
    assert ["leave --embedding-type out" in refused[0], "grid q8_0" in refused[1]] == [True, True]
