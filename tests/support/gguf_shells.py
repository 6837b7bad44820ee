"""GGUF files of names and shapes without weights: all that llama-quantize's types go by.

Their weights are a hole in the file, so that any number of layers takes no room.
"""

import math

import gguf
from gguf import GGMLQuantizationType, GGUFWriter

from lrqat.recipes.model_shape import ModelShape


def decoder(
    *, layers, heads, kv_heads, hidden, inner, tied=False, model_type="llama", experts=0,
    shared=0, vocabulary=288,
):  # fmt: skip
    """The shape of a decoder of Llama's kind, with or without experts."""
    head = hidden // heads
    narrow = kv_heads * head
    rows = {"q_proj": hidden, "k_proj": narrow, "v_proj": narrow, "o_proj": hidden}
    block = {f"self_attn.{name}": (count, hidden) for name, count in rows.items()}
    if experts:
        block["mlp.experts.gate_up_proj"] = (experts, 2 * inner, hidden)
        block["mlp.experts.down_proj"] = (experts, hidden, inner)
    block |= _feed_forward("mlp.shared_expert.", hidden, shared) if shared else {}
    block |= {} if experts else _feed_forward("mlp.", hidden, inner)
    shapes = {"model.embed_tokens": (vocabulary, hidden)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    shapes |= {} if tied else {"lm_head": (vocabulary, hidden)}
    return ModelShape(shapes, layers, heads, kv_heads, experts, tied, model_type)


def _feed_forward(prefix, hidden, inner):
    up, down = (inner, hidden), (hidden, inner)
    return {f"{prefix}gate_proj": up, f"{prefix}up_proj": up, f"{prefix}down_proj": down}


def gguf_names(modules, arch, layers):
    """Module -> GGUF names of its tensors, by gguf's own table."""
    number = {name: number for number, name in gguf.MODEL_ARCH_NAMES.items()}[arch]
    names = gguf.get_tensor_name_map(number, layers)
    found = {}
    for module in modules:
        split = "experts.gate_up_proj" in module
        parts = [module.replace("gate_up", own) for own in ("gate", "up")] if split else [module]
        found[module] = [f"{names.get_name(part)}.weight" for part in parts]
    return found


def write_shell(model, path, arch, **metadata):
    """Write it; return module -> GGUF names of its tensors."""
    writer = GGUFWriter(path, arch)
    values = {
        "block_count": model.layers, "context_length": 128, "embedding_length": 64,
        "feed_forward_length": 64, "attention.head_count": model.heads,
        "attention.head_count_kv": model.kv_heads, **metadata,
    }  # fmt: skip
    if model.experts:
        values |= {"expert_count": model.experts, "expert_used_count": 2}
    for key, value in values.items():
        writer.add_uint32(f"{arch}.{key}", value)
    for epsilon in ("layer_norm_rms_epsilon", "layer_norm_epsilon"):
        writer.add_float32(f"{arch}.attention.{epsilon}", 1e-5)
    names, size = gguf_names(model.shapes, arch, model.layers), 0
    for module, own in names.items():
        *stack, rows, width = model.shapes[module]
        shape = (*stack, rows // len(own), width)
        for name in own:
            nbytes = 2 * math.prod(shape)
            writer.add_tensor_info(name, shape, "float16", nbytes, GGMLQuantizationType.F16)
            size += nbytes + -nbytes % 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("r+b") as stream:
        end = path.stat().st_size
        stream.truncate(end + -end % 32 + size)
    return names
