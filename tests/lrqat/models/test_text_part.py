"""What text never reaches: left as it is, with that reason, and no part of an export."""

import numpy as np
import pytest
import torch
import transformers as hf

from exporters import gguf
from exporters.text_model import text_model
from lrqat.architectures import BESIDE_TEXT
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import UserError
from lrqat.models import hub
from lrqat.models.positions import learned_positions
from lrqat.models.reference import load_reference, torch_logits
from lrqat.models.surgery import plan_surgery
from lrqat.models.text_part import TextPart
from tests.support.checkpoints import fused
from tests.support.zoo import CONFIGS, GEMMA, VOCABULARY

VISION = {
    "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip


def gemma3():
    return hf.Gemma3Config(
        text_config=GEMMA,
        vision_config=VISION,
        mm_tokens_per_image=4,
        image_token_index=VOCABULARY - 1,
    )


def git():
    """Its vision tower stands inside, and its configuration has no text part."""
    text = {"vocab_size": VOCABULARY, "hidden_size": 64, "intermediate_size": 96}
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
    return hf.GitConfig(**text, **sizes, vision_config=VISION, bos_token_id=0, eos_token_id=0)


def gemma4():
    vision = VISION | {"num_key_value_heads": 2, "head_dim": 32}
    text = GEMMA | {
        "vocab_size_per_layer_input": VOCABULARY,
        "hidden_size_per_layer_input": 16,
        "global_head_dim": 16,
    }
    return hf.Gemma4Config(text_config=text, vision_config=vision, audio_config=None)


@pytest.mark.parametrize("config", [gemma3, gemma4, git])
def test_towers_stay_as_they_are(config):
    plan = plan_surgery(hub.meta_model(config()), "q8_0")
    beside = [name for name, reason in plan.kept.items() if reason == BESIDE_TEXT]
    assert beside
    assert not any("vision" in name or "image_enc" in name for name in plan.quantized)
    assert any(name.endswith("mlp.down_proj") or "output.dense" in name for name in plan.quantized)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "qwen3_moe", "falcon_h1"])
def test_text_reaches_all_of_a_text_model(name):
    model = hub.meta_model(CONFIGS[name]())
    assert TextPart(model).beside() == []
    assert all(own in TextPart(model) for own, _ in model.named_parameters())


def test_everything_is_on_one_side():
    model = hub.meta_model(gemma3())
    text = TextPart(model)
    beside = text.beside()
    assert set(beside) == {"model.vision_tower", "model.multi_modal_projector"}
    for name, _ in model.named_parameters():
        assert (name in text) != any(name.startswith(f"{module}.") for module in beside)


def test_positions_of_a_tower_are_not_those_of_text():
    assert learned_positions(hub.meta_model(gemma3())) is None
    assert learned_positions(hub.meta_model(git())) == 128


def test_a_grid_for_a_tower_is_refused():
    model = hub.meta_model(gemma3())
    with pytest.raises(UserError, match="vision"):
        plan_surgery(model, "q8_0", grid_for={"vision_tower": "q4_0"})
    assert plan_surgery(model, "q8_0", keep=["vision_tower"]) == plan_surgery(model, "q8_0")


def test_the_text_model_of_a_checkpoint_computes_the_same(tmp_path):
    checkpoint = fused(gemma3(), tmp_path / "fused", keep=(), grid_for={})
    text = text_model(checkpoint)
    tokens = np.arange(40)
    whole, alone = load_reference(checkpoint), load_reference(text)
    assert type(alone) is hf.Gemma3ForCausalLM
    assert np.array_equal(torch_logits(whole)(tokens), torch_logits(alone)(tokens))
    assert text_model(text) is text
    assert gguf.plan(checkpoint).refusals == []
    gguf.write(gguf.plan(checkpoint), tmp_path / "model.gguf")
    assert not any(gguf.verify(tmp_path / "model.gguf", checkpoint).values())


def test_a_text_checkpoint_is_its_own_text_model(make_fused):
    checkpoint = Checkpoint.open(make_fused("q4_0"))
    assert text_model(checkpoint) is checkpoint


def test_transformers_loads_a_checkpoint_with_its_tower(tmp_path):
    pytest.importorskip("compressed_tensors")
    folder = tmp_path / "fused"
    checkpoint = fused(gemma3(), folder, keep=(), grid_for={}, grid="int4-g32")
    theirs = hf.AutoModelForCausalLM.from_pretrained(folder)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        ours = load_reference(checkpoint)(input_ids=ids).logits
        assert torch.allclose(theirs(input_ids=ids).logits, ours, atol=1e-4)
