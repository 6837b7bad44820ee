"""Which part of a model text reaches, where a model takes images or sound too.

What text never reaches cannot be calibrated or trained on text, and an exported text model does
without it. transformers says which part is the text's (`get_decoder`, where the configuration has a
text part) and which inner models take something else (`main_input_name`, such as pixel_values);
layers that stand between a tower and the text are told by their names.
"""

import re
from collections.abc import Iterator
from typing import Any

from transformers import PreTrainedModel

_OTHER = re.compile(r"vision|visual|image|audio|video")


class TextPart:
    """The modules of a model that text reaches."""

    def __init__(self, model: Any) -> None:
        """Find them in `model`, which may be on the meta device."""
        self._model = model
        is_known = isinstance(model, PreTrainedModel)
        self._inside: tuple[str, ...] = _inside(model) if is_known else ()
        self._outside: tuple[str, ...] = _outside(model) if is_known else ()

    def __contains__(self, name: str) -> bool:
        """Whether text reaches the module, parameter or buffer of this name."""
        if any(_lies_in(name, tower) for tower in self._outside):
            return False
        return not self._inside or any(_lies_in(name, part) for part in self._inside)

    def beside(self) -> list[str]:
        """The outermost modules, and parameters outside them, that text never reaches."""
        return list(self._beside("", self._model))

    def _beside(self, name: str, module: Any) -> Iterator[str]:
        for own, child in (*module.named_children(), *module.named_parameters(recurse=False)):
            path = f"{name}.{own}" if name else own
            if any(_lies_in(part, path) and part != path for part in self._inside + self._outside):
                yield from self._beside(path, child)
            elif path not in self:
                yield path


def _inside(model: Any) -> tuple[str, ...]:
    """The modules that have all that text reaches; none: the whole model does."""
    if model.config.get_text_config() is model.config:
        return ()
    ends = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    names = {module: name for name, module in model.named_modules()}
    found = tuple(names.get(module, "") for module in ends if module is not None)
    return () if "" in found else found


def _outside(model: Any) -> tuple[str, ...]:
    """Towers and projectors of other modalities, with what stands around them alone."""
    embedding = model.get_input_embeddings()
    at = next((name for name, module in model.named_modules() if module is embedding), "")
    towers = (
        _widest_without(at, name)
        for name, module in model.named_modules()
        if name and not _lies_in(at, name) and _is_of_another_modality(name, module)
    )
    return tuple(dict.fromkeys(towers))


def _is_of_another_modality(name: str, module: Any) -> bool:
    if isinstance(module, PreTrainedModel) and module.main_input_name != "input_ids":
        return True
    return bool(_OTHER.search(name.rpartition(".")[2]))


def _widest_without(embedding: str, tower: str) -> str:
    """The outermost module around `tower` that does not hold the embedding too."""
    around = tower.rpartition(".")[0]
    if not around or _lies_in(embedding, around):
        return tower
    return _widest_without(embedding, around)


def _lies_in(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")
