"""The hyperparameters of a GGUF file as config.json.

    llama.embedding_length, llama.block_count ...      as in llama.cpp's src/llama-arch.cpp

What a file does not say has llama.cpp's default (`load_hparams` in src/llama-model.cpp), and what
it says beyond what the exporter writes of the configuration is refused.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exporters.gguf.architectures import find_architecture
from exporters.gguf.file.header import Header
from exporters.gguf.graph.hyperparameters import hyperparameters, refusals
from exporters.gguf.metadata import holds
from lrqat.errors import ModelError, refusing
from lrqat.models.configuration import build_config

Config = dict[str, Any]
INSTEAD = "give the Hugging Face folder that the file was made from"
# A converter's remark; nothing computes with it.
_REMARKS = ("rope.scaling.finetuned",)
# Parameters of Llama 3.1 and 3.2; the file has the frequencies that follow from them.
_LLAMA3_FACTORS = (8.0, 32.0)


class Said:
    """What the header of a file says of its architecture."""

    def __init__(self, path: Path, header: Header) -> None:
        self.path, self.header = path, header
        self.name = str(header.metadata.get("general.architecture"))

    def number(self, key: str, default: float | None = None) -> Any:
        """A number. Raises ModelError if there is none and no default."""
        found = self.header.metadata.get(f"{self.name}.{key}", default)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise ModelError(
                f"{self.path} says {self.name}.{key} = {found!s:.40}, and a number is needed; "
                f"{INSTEAD}"
            )
        # The shortest number that is the file's float32, which config.json said before.
        return float(str(np.float32(found))) if isinstance(found, float) else found

    def text(self, key: str) -> str:
        """A text, "" if there is none."""
        return str(self.header.metadata.get(f"{self.name}.{key}", ""))

    def has(self, *tensors: str) -> bool:
        """Whether there is one of these in the first block."""
        return any(f"blk.0.{tensor}" in self.header.tensors for tensor in tensors)


@dataclass(frozen=True)
class _Entry:
    """How config.json calls what an architecture of llama.cpp has."""

    model_type: str
    architecture: str
    more: Callable[[Said], Config] = lambda said: {}


def _biases(said: Said) -> Config:
    return {
        "attention_bias": said.has("attn_q.bias"),
        "mlp_bias": said.has("ffn_gate.bias", "ffn_up.bias"),
    }


def _attention_bias(said: Said) -> Config:
    return {"attention_bias": said.has("attn_q.bias")}


def _granite(said: Said) -> Config:
    return _biases(said) | {
        "attention_multiplier": said.number("attention.scale"),
        "embedding_multiplier": said.number("embedding_scale"),
        "residual_multiplier": said.number("residual_scale"),
        "logits_scaling": said.number("logit_scale"),
    }


def _gemma(said: Said, every: int, blocks_27b: int) -> Config:
    blocks, heads = said.number("block_count"), said.number("attention.head_count")
    size = said.number("attention.key_length")
    pattern = said.header.metadata.get(f"{said.name}.attention.sliding_window_pattern")
    slides = [i % every < every - 1 for i in range(blocks)]
    if isinstance(pattern, np.ndarray) and len(pattern) == blocks:
        slides = [bool(each) for each in pattern]
    return _attention_bias(said) | {
        "hidden_activation": "gelu_pytorch_tanh",
        "sliding_window": said.number("attention.sliding_window"),
        "layer_types": ["sliding_attention" if each else "full_attention" for each in slides],
        "query_pre_attn_scalar": (
            said.number("embedding_length") // heads if blocks == blocks_27b else size
        ),
    }


def _gemma2(said: Said) -> Config:
    caps = {
        "attn_logit_softcapping": said.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": said.number("final_logit_softcapping", 30.0),
    }
    return _gemma(said, 2, 46) | caps


def _gemma3(said: Said) -> Config:
    cap = "final_logit_softcapping"
    local = {"rope_type": "default", "rope_theta": said.number("rope.freq_base_swa", 10000.0)}
    return _gemma(said, 6, 62) | {
        cap: said.number(cap) if f"gemma3.{cap}" in said.header.metadata else None,
        "rope_parameters": {"full_attention": rope_of(said), "sliding_attention": local},
    }


_ENTRIES = {
    "llama": _Entry("llama", "LlamaForCausalLM", _biases),
    "qwen2": _Entry("qwen2", "Qwen2ForCausalLM"),
    "qwen3": _Entry("qwen3", "Qwen3ForCausalLM", _attention_bias),
    "gemma2": _Entry("gemma2", "Gemma2ForCausalLM", _gemma2),
    "gemma3": _Entry("gemma3_text", "Gemma3ForCausalLM", _gemma3),
    "granite": _Entry("granite", "GraniteForCausalLM", _granite),
    "smollm3": _Entry("smollm3", "SmolLM3ForCausalLM", _attention_bias),
    "olmo2": _Entry("olmo2", "Olmo2ForCausalLM", _attention_bias),
}


def rope_of(said: Said) -> Config:
    """The rotary parameters, in the newer form."""
    rope: Config = {"rope_type": "default", "rope_theta": said.number("rope.freq_base", 10000.0)}
    kind = said.text("rope.scaling.type")
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": said.number("rope.scaling.factor")}
    if kind == "yarn":
        original = said.number("rope.scaling.original_context_length")
        rope["original_max_position_embeddings"] = original
    if "rope_freqs.weight" in said.header.tensors:
        rope |= {
            "rope_type": "llama3", "factor": _llama3_factor(said), "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
        }  # fmt: skip
    return rope


def _llama3_factor(said: Said) -> float:
    """The factor: by what the slowest frequency is divided."""
    values = said.header.tensors["rope_freqs.weight"].read().view(np.float32).ravel()
    found = float(values[-1])
    if found not in _LLAMA3_FACTORS:
        raise ModelError(
            f"{said.path} divides rotary frequencies by up to {found:g}, and not as Llama 3.1 or "
            f"3.2; {INSTEAD}"
        )
    return found


def read_configuration(path: Path, header: Header) -> Config:
    """config.json of the model in a file.

    Raises:
        ModelError: an architecture without an entry, or that asks for what is not understood.
    """
    said = Said(path, header)
    entry = _ENTRIES.get(said.name)
    if entry is None:
        raise ModelError(
            f"{path} holds a model of the architecture {said.name:.40}, which is not read from "
            f"GGUF ({', '.join(_ENTRIES)} are); {INSTEAD}"
        )
    values = _usual(said, entry) | _ids(said) | entry.more(said)
    config: Config = build_config(path, values).to_dict()
    config |= {"architectures": [entry.architecture], "dtype": "bfloat16"}
    with refusing(ModelError, f"the configuration of {path} makes no sense", INSTEAD):
        _compare(said, config)
    return config


def read_generation(header: Header) -> Config:
    """generation_config.json, which lists all ends of a text."""
    said = {
        role: header.metadata.get(f"tokenizer.ggml.{role}_token_id")
        for role in ("bos", "eos", "eot", "eom")
    }
    ids = {role: value for role, value in said.items() if type(value) is int}
    begin = {"bos_token_id": ids.pop("bos")} if "bos" in ids else {}
    return begin | ({"eos_token_id": list(dict.fromkeys(ids.values()))} if ids else {})


def _usual(said: Said, entry: _Entry) -> Config:
    heads, hidden = said.number("attention.head_count"), said.number("embedding_length")
    embedding = said.header.tensors.get("token_embd.weight")
    if embedding is None:
        raise ModelError(f"{said.path} has no token_embd.weight, and holds no language model")
    return {
        "model_type": entry.model_type,
        "vocab_size": embedding.shape[0],
        "max_position_embeddings": said.number("context_length"),
        "hidden_size": hidden,
        "num_hidden_layers": said.number("block_count"),
        "intermediate_size": said.number("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": said.number("attention.head_count_kv", heads),
        "head_dim": said.number("attention.key_length", hidden // max(int(heads), 1)),
        "rms_norm_eps": said.number("attention.layer_norm_rms_epsilon"),
        "rope_parameters": rope_of(said),
        "tie_word_embeddings": "output.weight" not in said.header.tensors,
    }


def _ids(said: Said) -> Config:
    """Which tokens begin and end a text."""
    found = {}
    for own, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        value = said.header.metadata.get(f"tokenizer.ggml.{key}_token_id")
        found[f"{own}_token_id"] = value if type(value) is int else None
    return found


def _compare(said: Said, config: Config) -> None:
    """Raise ModelError unless the file says what the exporter would, and nothing more."""
    architecture = find_architecture(config)
    expected = {entry.key: entry for entry in hyperparameters(architecture, config)}
    reasons = refusals(architecture, config)
    prefix = f"{said.name}."
    for key, found in said.header.metadata.items():
        if not key.startswith(prefix) or key.removeprefix(prefix) in _REMARKS:
            continue
        if key not in expected:
            reasons.append(f"it says {key} = {found!s:.60}, which is not understood here")
        elif not holds(expected[key], found):
            reasons.append(f"it says {key} = {found!s:.60}, which has no form in config.json")
    if reasons:
        raise ModelError(f"{said.path} cannot be read as a base model: {reasons[0]}; {INSTEAD}")
