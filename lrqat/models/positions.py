"""How many positions a model has, and whether it ends there.

Learned positions (GPT-2, OPT) are rows of an embedding, and some models look computed ones up in a
buffer (GPT-J, CodeGen): past the last row there is nothing, and an index error in PyTorch or an
abort of the process in llama.cpp. Positions that are computed as they come (rotary, ALiBi) have no
end; past `max_position_embeddings` a model computes what it was never trained for. transformers and
llama.cpp warn of that, and so do we.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoConfig

from lrqat.models import hub
from lrqat.models.text_part import TextPart

_WITHOUT_POS = "wpe"  # GPT-2's, GPT-Neo's and StarCoder's name; all others have "pos" in theirs


def learned_positions(model: Any) -> int | None:
    """The number of positions that `model`, also one on meta, has rows for; None: no end."""
    return min(_rows(model), default=None)


def trained_positions(config: Any) -> int | None:
    """The number of positions that a model of `config` was trained for; None if it does not say."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found if isinstance(found, int) and found > 0 else None


def positions_of_folder(folder: Path) -> tuple[int | None, int | None]:
    """`learned_positions` and `trained_positions` by a config.json; None without a usable one."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        values.pop("quantization_config", None)
        config = AutoConfig.for_model(**values)
        return learned_positions(hub.meta_model(config)), trained_positions(config)
    except (OSError, ValueError, TypeError, AttributeError, KeyError):
        return None, None


def warning_beyond(trained: int | None, length: int, setting: str) -> str | None:
    """What to say of a `length`, the value of `setting`, that passes what was trained, or None."""
    if trained is None or length <= trained:
        return None
    return (
        f"{setting} {length} is more than the {trained} positions that the model was trained "
        "for; it computes further ones, and mostly predicts badly there"
    )


def _rows(model: Any) -> Iterator[int]:
    text = TextPart(model)
    for name, module in model.named_modules():
        last = name.rpartition(".")[2]
        learned = isinstance(module, nn.Embedding) and ("pos" in last or last == _WITHOUT_POS)
        if learned and name in text:
            yield module.num_embeddings - _unused(module)
    for name, buffer in model.named_buffers():
        looked_up = buffer.dim() == 2 and buffer.is_floating_point() and name in text
        if looked_up and "pos" in name.rpartition(".")[2]:
            yield buffer.shape[0]


def _unused(embedding: Any) -> int:
    """Rows before position 0: OPT's offset; in RoBERTa the padding's row and those before it."""
    padding = embedding.padding_idx
    return int(getattr(embedding, "offset", 0 if padding is None else padding + 1))
