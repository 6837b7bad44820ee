"""Folders of tiny models whose projections lie on a grid, and what an import makes of them."""

import gguf
import numpy as np
import torch
from safetensors.torch import load_file, save_file

from exporters.gguf.blocks import integer_blocks
from lrqat.models.small_llama import make_tokenizer
from tests.support.checkpoints import TEXT
from tests.support.zoo import CONFIGS, VOCABULARY, make_from

PROJECTION = "_proj.weight"


def folder_of(path, change, config="llama", dtype=torch.bfloat16, **settings):
    """A Hugging Face folder of a random model of a configuration, or its name.

    `change` is given the name and value of each projection, and returns tensors by the end of
    their names, which take its place.
    """
    model = make_from(CONFIGS[config]() if isinstance(config, str) else config).to(dtype)
    if settings:
        model.config.quantization_config = settings
    model.config.save_pretrained(path)
    make_tokenizer([TEXT], vocabulary=VOCABULARY).save_pretrained(path)
    state = {}
    for name, value in one_by_one(model.state_dict()):
        module = name.removesuffix(".weight")
        changed = change(name, value) if name.endswith(PROJECTION) else {"weight": value}
        parts = changed if name.endswith(".weight") else {}
        state |= {f"{module}.{end}": part.contiguous() for end, part in parts.items()}
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    return path


def one_by_one(state):
    """Names and values as most files have them: every projection of every expert by itself."""
    for name, value in state.items():
        if value.ndim < 3:
            yield name, value
            continue
        stack, _, own = name.rpartition(".")
        parts = ("gate_proj", "up_proj") if own == "gate_up_proj" else (own,)
        for i, expert in enumerate(value):
            for part, rows in zip(parts, expert.chunk(len(parts)), strict=True):
                yield f"{stack}.{i}.{part}.weight", rows


def state_of(path):
    """The tensors of a folder."""
    return load_file(path / "model.safetensors")


def by_gguf(value, name):
    """A matrix on a type by gguf's own quantizer: integers int8, and the weights float32."""
    kind = gguf.GGMLQuantizationType[name.upper()]
    data = gguf.quantize(value.float().numpy(), kind)
    block = integer_blocks()[name]
    levels = block.factors(block.unpack(data)).levels
    return np.asarray(levels, np.int8), torch.from_numpy(np.array(gguf.dequantize(data, kind)))


def weights_of(checkpoint, name):
    """What a tensor of the checkpoint means, float32."""
    if name.removesuffix(".weight") in checkpoint.quantized_names:
        value = checkpoint.quantized(name.removesuffix(".weight")).dequantize()
    else:
        value = checkpoint.floating(name).astype(np.float32)
    return torch.from_numpy(value)
