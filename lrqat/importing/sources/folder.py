"""A Hugging Face folder, or an id of the hub: weights as they are, or in the layout of a library.

A layout knows the tensors that stand for a weight, and makes integers of them. Everything else is
the same for all: the configuration without its quantization, the model's own names of parameters,
and the tensors that no layout claims.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from lrqat.errors import ModelError
from lrqat.importing.sources.integers import Integers, on_grid
from lrqat.importing.sources.parts import Parts
from lrqat.importing.sources.source import Read
from lrqat.models import hub
from lrqat.models.stored_model import open_model
from lrqat.models.streaming import read_generation_config
from lrqat.models.tying import is_tied, tensors_by_parameter
from lrqat.models.weight_files import Weights, open_weights

_TYPES = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}


class Layout(Protocol):
    """How a library stores quantized weights."""

    kind: str
    notes: list[str]

    def modules(self, names: Iterable[str]) -> set[str]:
        """Names of the modules whose weight is quantized, of the names of all tensors."""

    def read(self, parts: Parts) -> tuple[Integers, str]:
        """The weight of a module, and how it is stored, for people.

        Args:
            parts: the module's tensors.

        Raises:
            ModelError: tensors that are missing or do not belong together.
        """


class FolderSource:
    """A `Source` of safetensors files."""

    def __init__(self, name: str, layout: Layout | None) -> None:
        """Look at the files, whose weights are as they are without a layout.

        Raises:
            ModelError: they are not a model's.
        """
        self.name, self._layout = name, layout
        self.kind = "weights" if layout is None else layout.kind
        if layout is None:
            stored = open_model(name, download=True)
            self.skeleton, weights, self.notes = stored.skeleton, stored.weights, [*stored.notes]
        else:
            config = hub.read_config(name)
            if hasattr(config, "quantization_config"):
                del config.quantization_config
            self.skeleton, self.notes = hub.meta_model(config), [*layout.notes]
            weights = open_weights(name, config)
        if weights is None:
            raise ModelError(f"{name} has no safetensors files; save the model as safetensors")
        self._weights: Weights = weights
        found = set() if layout is None else layout.modules(weights.names)
        self._quantized = {f"{module}.weight": module for module in found}
        known = {*weights.names, *self._quantized}
        self._tensor_of = tensors_by_parameter(self.skeleton, known)
        self.shapes = self._shapes()
        self.dtype = self._dtype()

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        state = self.skeleton.state_dict()
        if is_tied(self.skeleton):
            head = self.skeleton.get_output_embeddings()
            names = {module: f"{name}.weight" for name, module in self.skeleton.named_modules()}
            state.pop(names[head], None)
        missing = [name for name in state if name not in self._tensor_of]
        if missing:
            raise ModelError(
                f"{len(missing)} weights of {self.name} are not in its files one by one, the first "
                f"{missing[0]!r}; use an intact copy. If these are experts, which are stored in "
                "another form than the model has them: start from its floating-point original "
                "(`lrqat train --model`)"
            )
        # Those of one file together, which is kept open.
        plain = [n for n in state if self._tensor_of[n] not in self._quantized]
        tensors = {self._tensor_of[n]: n for n in plain}
        order = [tensors[t] for t in self._weights.in_file_order(tensors)]
        order += [n for n in state if n not in set(order)]
        return {name: tuple(state[name].shape) for name in order}

    def _dtype(self) -> str:
        config = self.skeleton.config
        found = getattr(config, "dtype", None) or torch.bfloat16
        return str(found).removeprefix("torch.")

    def read(self, parameter: str) -> Read:
        """See `Source`."""
        tensor = self._tensor_of[parameter]
        module = self._quantized.get(tensor)
        if self._layout is None or module is None:
            values = self._weights(tensor)
            return Read(_TYPES.get(values.dtype, str(values.dtype)), values)
        integers, said = self._layout.read(Parts(module, self._load))
        if tuple(integers.q.shape) != self.shapes[parameter]:
            raise ModelError(
                f"{module} of {self.name} has the shape {tuple(integers.q.shape)}, and the model's "
                f"configuration asks for {self.shapes[parameter]}; use an intact copy"
            )
        return on_grid(parameter.removesuffix(".weight"), integers, said)

    def _load(self, name: str) -> Tensor | None:
        return self._weights(name) if name in self._weights.names else None

    def tokenizer(self) -> Any:
        """See `Source`."""
        return hub.load_tokenizer(self.name)

    def read_generation_config(self) -> None:
        """See `Source`."""
        read_generation_config(self.skeleton, self.name)
