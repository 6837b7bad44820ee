"""A head is the embedding if the weights are one, whatever config.json says."""

import json

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file

from exporters import gguf
from exporters.onnx.planning import plan as plan_onnx
from exporters.onnx.writer import write as write_onnx
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import ModelError
from lrqat.models import fuse, hub
from lrqat.models.preparation import Settings, prepare
from lrqat.models.reference import load_reference, torch_logits
from lrqat.models.stored_model import open_model
from lrqat.models.streaming import load_streamed
from lrqat.models.surgery import plan_surgery
from lrqat.models.tying import is_tied
from tests.support.zoo import make_from, small_llama

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
TOKENS = np.arange(12)


@pytest.fixture(params=[True, False], ids=["with a prefix", "without"])
def contradiction(request, tmp_path):
    """Folder of a model whose config.json ties a head that differs from the embedding."""
    make_from(small_llama()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    if not request.param:  # as a base model is saved: transformers finds the names
        tensors = load_file(tmp_path / "model.safetensors")
        tensors = {name.removeprefix("model."): value for name, value in tensors.items()}
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path


def test_the_weights_decide_when_planning_and_when_loading(contradiction):
    stored = open_model(str(contradiction))
    assert not stored.config.tie_word_embeddings
    assert "two that differ" in stored.notes[0]
    assert not is_tied(stored.skeleton)
    model = hub.load_model(str(contradiction), dtype=torch.float32)
    assert not is_tied(model)
    assert not model.config.tie_word_embeddings
    grids = {"embed_tokens": "q8_0"}
    plan = plan_surgery(stored.skeleton, "q8_0", grid_for=grids)
    assert plan == plan_surgery(model, "q8_0", grid_for=grids)
    assert plan.quantized["model.embed_tokens"].tied_to is None


def test_equal_copies_are_one_weight(tmp_path):
    make_from(small_llama(tie_word_embeddings=True)).save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {HEAD: tensors[EMBEDDING].clone()}, path, metadata={"format": "pt"})
    assert is_tied(open_model(str(tmp_path)).skeleton)
    assert is_tied(hub.load_model(str(tmp_path), dtype=torch.float32))


def test_streamed_and_whole_are_the_same_model(contradiction):
    plan = plan_surgery(open_model(str(contradiction)).skeleton, "q8_0")
    settings = Settings(rank=4, range_init="minmax")
    streamed = load_streamed(str(contradiction), plan, settings, dtype=torch.float32)
    whole = hub.load_model(str(contradiction), dtype=torch.float32)
    if streamed is None:  # other names than the model's
        assert EMBEDDING not in load_file(contradiction / "model.safetensors")
        return
    assert torch.equal(streamed.lm_head.weight, whole.lm_head.weight)
    assert not streamed.config.tie_word_embeddings


def test_a_plan_that_ties_what_differs_is_refused(contradiction):
    tied = hub.meta_model(hub.load_config(str(contradiction)))
    plan = plan_surgery(tied, "q8_0", grid_for={"embed_tokens": "q8_0"})
    assert plan.quantized["model.embed_tokens"].tied_to == "lm_head"
    with pytest.raises(ModelError, match="two that differ"):
        prepare(hub.load_model(str(contradiction), dtype=torch.float32), plan, Settings(rank=4))


@pytest.mark.parametrize("grids", [{}, {"embed_tokens": "q8_0"}], ids=["unquantized", "on a grid"])
def test_checkpoint_and_exports_keep_the_head(contradiction, tiny_model, tmp_path, grids):
    """Also of a model that somebody loaded himself, whose configuration still says tied."""
    model = hf.AutoModelForCausalLM.from_pretrained(contradiction, dtype=torch.float32)
    assert model.config.tie_word_embeddings
    plan = plan_surgery(model, "q8_0", grid_for=grids)
    prepare(model, plan, Settings(rank=4, range_init="minmax"))
    expected = torch_logits(model.eval())(TOKENS)
    folder = tmp_path / "fused"
    base = {"name": "tiny", "revision": None, "dtype": "float32"}
    fuse.fuse(model, hub.load_tokenizer(tiny_model), folder, plan=plan, base_model=base)
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.config["tie_word_embeddings"] is False
    assert np.array_equal(torch_logits(load_reference(checkpoint))(TOKENS), expected)
    # A checkpoint of an earlier version, whose configuration ties what the file holds twice.
    old = Checkpoint(folder, checkpoint.manifest, checkpoint.config | {"tie_word_embeddings": True})
    for each in (checkpoint, old):
        assert np.array_equal(torch_logits(load_reference(each))(TOKENS), expected)
        made = gguf.plan(each)
        assert {"output.weight", "token_embd.weight"} <= {t.source.name for t in made.tensors}
    write_onnx(plan_onnx(old), tmp_path / "onnx")
    pytest.importorskip("onnxruntime")
    from lrqat.runtimes.onnx_runtime.session import OnnxRuntime

    with OnnxRuntime.open(tmp_path / "onnx") as runtime:
        assert np.abs(runtime.logits(TOKENS) - expected).max() < 1e-3
