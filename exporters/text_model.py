"""The text model of a checkpoint whose model takes images or sound too.

A runtime for text has no use for a vision tower. What text never reaches was left unquantized with
that reason (`lrqat.json`, `kept`), and is left out; what remains is the text model, under the names
and with the configuration that transformers gives it where it stands alone.
"""

import re
from typing import Any

from numpy.typing import NDArray

from lrqat.architectures import BESIDE_TEXT
from lrqat.checkpoint.reader import Checkpoint
from lrqat.checkpoint.safetensors_file import StoredTensor

# What the text model is called inside the other: model.language_model.layers is model.layers.
_INSIDE = re.compile(r"(^|\.)(language_model|text_model)\.")
# Of the configuration of the whole, what its text part may not say.
_SHARED = ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id", "dtype")


def text_model(checkpoint: Checkpoint) -> Checkpoint:
    """The text model of `checkpoint`, or `checkpoint` itself if that is all there is."""
    is_part = isinstance(checkpoint.config.get("text_config"), dict)
    return _TextModel(checkpoint) if is_part else checkpoint


class _TextModel(Checkpoint):
    """A view of a checkpoint: fewer tensors, other names, the same bytes."""

    def __init__(self, whole: Checkpoint) -> None:
        manifest = dict(whole.manifest)
        beside = [name for name, reason in manifest["kept"].items() if reason == BESIDE_TEXT]
        for key in ("tensors", "kept"):
            manifest[key] = {
                _alone(name): entry for name, entry in manifest[key].items() if name not in beside
            }
        if manifest.get("activations"):
            record = dict(manifest["activations"])
            record["modules"] = {_alone(n): grid for n, grid in record["modules"].items()}
            manifest["activations"] = record
        super().__init__(whole.path, manifest, _text_config(whole.config))
        self._whole = whole
        self._origin_of = {
            _alone(name): name
            for name in whole._file_of
            if not any(name == module or name.startswith(f"{module}.") for module in beside)
        }
        self._file_of = {name: whole._file_of[old] for name, old in self._origin_of.items()}

    def floating(self, name: str, rows: slice = slice(None)) -> NDArray[Any]:
        return self._whole.floating(self._origin_of.get(name, name), rows)

    def _stored(self, name: str) -> StoredTensor:
        return self._whole._stored(self._origin_of.get(name, name))


def _alone(name: str) -> str:
    return _INSIDE.sub(r"\1", name, count=1)


def _text_config(config: dict[str, Any]) -> dict[str, Any]:
    text = {**config["text_config"], **{key: config[key] for key in _SHARED if key in config}}
    classes = [str(name) for name in config.get("architectures") or []]
    alone = [name.replace("ForConditionalGeneration", "ForCausalLM") for name in classes]
    return text | {"architectures": alone}
