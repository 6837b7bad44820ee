"""Bytes of a GGUF file besides the weights that go on a grid, without writing one.

Norms and biases are float32 and other matrices float16; the vocabulary is most of the metadata. It
is counted from the tokenizer, to within some kilobytes of what the exporter writes. Whoever knows
the exporter asks it for the exact number (`FileBytes` of `lrqat.training.budget`).
"""

import json
from typing import Any

from lrqat.budget.rounding import parameter_of
from lrqat.models.surgery import SurgeryPlan

_STRING, _NUMBER = 8, 4  # a string's length, and an entry of a list of numbers
_TENSOR = 72  # name, shape, type and offset in the header
_KEYS = 4096  # hyperparameters, names, provenance
_ALIGNMENT = 32


def other_bytes(model: Any, surgery: SurgeryPlan, tokenizer: Any) -> int:
    """Bytes of the file besides the weights of `surgery`.

    Args:
        model: the causal LM, whole or on the meta device.
        surgery: which weights go on a grid.
        tokenizer: of the model, from transformers.
    """
    planned = {id(parameter_of(model, name, t)) for name, t in surgery.quantized.items()}
    others = [p for p in model.parameters() if id(p) not in planned]
    sizes = [p.numel() * (4 if p.ndim < 2 else 2) for p in others]
    tensors = sum(size + -size % _ALIGNMENT for size in sizes)
    tensors += _TENSOR * (len(others) + len(planned))
    return tensors + _vocabulary_bytes(tokenizer) + _KEYS


def _vocabulary_bytes(tokenizer: Any) -> int:
    tokens = tokenizer.get_vocab()
    total = sum(_STRING + len(token.encode()) + _NUMBER for token in tokens)
    template = tokenizer.chat_template or ""
    total += len(json.dumps(template))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return total + _NUMBER * len(tokens)
    stored = json.loads(backend.to_str())["model"]
    merges = stored.get("merges") or []
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in merges)
    total += sum(_STRING + 1 + sum(len(part.encode()) for part in pair) for pair in pairs)
    return total + (_NUMBER * len(tokens) if stored.get("type") == "Unigram" else 0)
