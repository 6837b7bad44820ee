"""What the files of a model hold, and whether that is the model; no weight is read for it.

Only a head is read, to see whether it is the embedding, and tensors wider than float32, to see
whether that holds them.
"""

from dataclasses import dataclass
from typing import Any

import torch

from lrqat.errors import ModelError, refusing
from lrqat.models import hub
from lrqat.models.causes import adapter, is_adapter
from lrqat.models.from_gguf.folder import described, folder_of, is_gguf
from lrqat.models.tying import has_other_head, is_tied, set_tied
from lrqat.models.weight_files import Weights, open_weights
from lrqat.models.weight_misfits import quiet_loading, refuse_misfit, unused_tensors

_OTHER_HEAD = (
    "config.json ties the output head to the embedding (tie_word_embeddings), and the files hold "
    "two that differ; the head is a weight of its own"
)


@dataclass(frozen=True)
class StoredModel:
    """A model as its files describe it.

    Attributes:
        config: its configuration; `tie_word_embeddings` is what the weights say.
        skeleton: the model on the meta device.
        weights: its files; None if they are not safetensors, or not on this machine.
        notes: what a user should know of the files, one sentence each.
    """

    config: Any
    skeleton: Any
    weights: Weights | None
    notes: tuple[str, ...] = ()


def open_model(
    name: str, *, trust_remote_code: bool = False, download: bool = False
) -> StoredModel:
    """Look at the files of a causal language model.

    Args:
        name: a local folder, a GGUF file, or an id on the Hugging Face hub.
        trust_remote_code: run Python code that the model brings.
        download: fetch the weights of a hub id; else they are looked at only if they are here.

    Raises:
        ModelError: no such model; a damaged file; tensors that are not the model's, with the cure.
    """
    notes = [described(name)] if is_gguf(name) else []
    name = str(folder_of(name))
    config = hub.load_config(name, trust_remote_code=trust_remote_code)
    skeleton = hub.meta_model(config, trust_remote_code=trust_remote_code)
    weights = open_weights(name, config, download=download)
    if weights is None:
        if is_adapter(name):
            raise ModelError(f"{name} cannot be trained: {adapter(name)}")
        return StoredModel(config, skeleton, None)
    if is_tied(skeleton) and has_other_head(skeleton, weights):
        set_tied(config, False)
        skeleton = hub.meta_model(config, trust_remote_code=trust_remote_code)
        notes.append(_OTHER_HEAD)
    _refuse_other_tensors(name, skeleton, weights)
    return StoredModel(config, skeleton, weights, (*notes, *_notes(skeleton, weights)))


def _refuse_other_tensors(name: str, skeleton: Any, weights: Weights) -> None:
    """Let transformers load tensors of the same names and shapes that take no memory."""
    state = {tensor: weights.on_meta(tensor) for tensor in weights.in_file_order(weights.names)}
    with (
        refusing(
            ModelError, f"cannot load the weights of {name!r}", "use an intact copy of the model"
        ),
        quiet_loading(bar=False),
        torch.random.fork_rng(devices=[]),
    ):
        loaded, info = type(skeleton).from_pretrained(
            None,
            config=skeleton.config,
            state_dict=state,
            device_map="meta",
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    refuse_misfit(name, loaded, info)


def _notes(skeleton: Any, weights: Weights) -> list[str]:
    notes = []
    unused = unused_tensors(skeleton, weights.names)
    if unused:
        notes.append(
            f"{len(unused)} tensors of the files are not used by a {type(skeleton).__name__}: "
            f"{', '.join(unused[:3])}{', ...' if len(unused) > 3 else ''}"
        )
    wide = [tensor for tensor in weights.in_file_order(weights.names) if _loses(weights, tensor)]
    if wide:
        notes.append(
            f"{len(wide)} tensors are float64 and hold values that float32 rounds, such as "
            f"{wide[0]}; the model is computed and stored in float32"
        )
    return notes


def _loses(weights: Weights, tensor: str) -> bool:
    """Whether a tensor has values that are no float32."""
    if weights.on_meta(tensor).dtype != torch.float64:
        return False
    value = weights(tensor)
    return not torch.equal(value.float().double(), value)
