"""Tiny random models of images and text, by the family."""

import torch
import transformers as hf

from lrqat.models import hub
from tests.lrqat.models.test_text_part import VISION, gemma3
from tests.support.zoo import HEAD_DIM, MOE, SIZES

QWEN_VISION = {
    "depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32,
    "patch_size": 14, "spatial_merge_size": 1, "out_hidden_size": 64, "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0], "fullatt_block_indexes": [0],
}  # fmt: skip
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
TOKENS = torch.arange(5, 45)[None]


def of(name, text, vision, **more):
    return getattr(hf, f"{name}Config")(text_config=text, vision_config=vision, **more)


NESTED = {
    "qwen2_vl": lambda: of("Qwen2VL", HEAD_DIM | {"rope_parameters": MROPE},
                           QWEN_VISION | {"hidden_size": 64}),
    "qwen2_5_vl": lambda: of("Qwen2_5_VL", HEAD_DIM | {"rope_parameters": MROPE}, QWEN_VISION),
    "qwen3_vl": lambda: of("Qwen3VL", HEAD_DIM | {"rope_parameters": MROPE}, QWEN_VISION),
    "qwen3_vl_moe": lambda: of("Qwen3VLMoe", MOE | {"rope_parameters": MROPE}, QWEN_VISION),
    "mistral3": lambda: of("Mistral3", SIZES | {"model_type": "mistral", "head_dim": 16},
                           VISION | {"model_type": "pixtral"}, spatial_merge_size=1),
    "gemma3": gemma3,
}  # fmt: skip


def nested_model(name, tokenizer_of, folder):
    """A model of `NESTED` with the tokenizer of another; itself, and the folder it is saved in."""
    torch.manual_seed(0)
    tokenizer, config = hub.load_tokenizer(tokenizer_of), NESTED[name]()
    config.get_text_config().vocab_size = len(tokenizer)
    model = hf.AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():  # biases and norms are random too
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, str(folder)
