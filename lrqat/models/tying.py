"""Whether the output head is the embedding: what the weights are decides, not the configuration.

transformers loads a head that differs from the embedding as a head of its own, whatever
`tie_word_embeddings` says. What is planned, trained and written follows that.
"""

from typing import Any

import torch

from lrqat.models.names_in_files import tensors_by_parameter
from lrqat.models.weight_files import Weights


def is_tied(model: Any) -> bool:
    """Whether the output head of `model`, prepared or not, is its embedding.

    On the meta device nothing is tied yet, and the configuration has the word; `open_model` of
    `lrqat.models.stored_model` sees to it that it tells the truth.
    """
    head, embedding = _head_and_embedding(model)
    if head is None or embedding is None:
        return False
    if getattr(embedding, "table", None) is head:  # both on a grid
        return True
    own, other = getattr(head, "weight", None), getattr(embedding, "weight", None)
    if own is None or other is None or own is other:
        return own is not None and own is other
    says_so = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    return other.is_meta and bool(says_so)


def settle_tying(model: Any, config: Any) -> None:
    """Write into `config` whether head and embedding of `model` are one, if it has a head."""
    if _head_and_embedding(model)[0] is not None:
        set_tied(config, is_tied(model))


def set_tied(config: Any, tied: bool) -> None:
    """Write into `config`, and that of its text part, whether head and embedding are one."""
    for each in (config, config.get_text_config()):
        if hasattr(each, "tie_word_embeddings"):
            each.tie_word_embeddings = tied


def has_other_head(skeleton: Any, weights: Weights) -> bool:
    """Whether the files hold a head that differs from the embedding it is said to be.

    Args:
        skeleton: the model on the meta device.
        weights: its files, of which at most the head and the embedding are read.

    Raises:
        ModelError: a file cannot be read.
    """
    head, embedding = _head_and_embedding(skeleton)
    if head is None or embedding is None:
        return False
    names = {module: f"{name}.weight" for name, module in skeleton.named_modules()}
    stored = tensors_by_parameter(skeleton, weights.names)
    one, other = (stored.get(names[module]) for module in (embedding, head))
    if one is None or other is None or one == other:
        return False
    return not torch.equal(weights(one), weights(other))


def _head_and_embedding(model: Any) -> tuple[Any, Any]:
    getters = ("get_output_embeddings", "get_input_embeddings")
    head, embedding = (getattr(model, name, lambda: None)() for name in getters)
    return head, embedding
