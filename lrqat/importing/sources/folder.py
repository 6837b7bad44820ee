"""A Hugging Face folder, or an id of the hub: weights as they are, or in the layout of a library.

A layout knows the tensors that stand for a weight, and makes integers of them. Everything else is
the same for all: the configuration without its quantization, the model's own names of parameters,
experts that the files hold one by one, and the tensors that no layout claims.
"""

from collections.abc import Iterable
from typing import Any, Protocol

import torch
from torch import Tensor

from lrqat.errors import ModelError
from lrqat.importing.sources.integers import Integers, on_grid, one_below_the_other
from lrqat.importing.sources.parts import Parts
from lrqat.importing.sources.source import Read, expert_name
from lrqat.models import hub
from lrqat.models.matrices import find_matrices
from lrqat.models.names_in_files import experts_by_parameter, tensors_by_parameter
from lrqat.models.stored_model import open_model
from lrqat.models.streaming import read_generation_config
from lrqat.models.tying import is_tied
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
        matrices = dict(find_matrices(self.skeleton))
        stacks = experts_by_parameter(self.skeleton, known)
        self._stacks = {name: parts for name, parts in stacks.items() if name in matrices}
        self._tensors_of = {
            name: [tensor] for name, tensor in tensors_by_parameter(self.skeleton, known).items()
        }
        for name, experts in self._stacks.items():
            self._tensors_of |= {expert_name(name, i): parts for i, parts in enumerate(experts)}
        self.shapes = self._shapes()
        self.dtype = self._dtype()

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        state = self.skeleton.state_dict()
        if is_tied(self.skeleton):
            head = self.skeleton.get_output_embeddings()
            names = {module: f"{name}.weight" for name, module in self.skeleton.named_modules()}
            state.pop(names[head], None)
        for name in self._stacks:
            each = state.pop(name)
            state |= {expert_name(name, i): matrix for i, matrix in enumerate(each)}
        missing = [name for name in state if name not in self._tensors_of]
        if missing:
            raise ModelError(
                f"{len(missing)} weights of {self.name} are not in its files one by one, the first "
                f"{missing[0]!r}; use an intact copy. If its files have them in another form than "
                "the model: start from its floating-point original (`lrqat train --model`)"
            )
        # Those of one file together, which is kept open.
        firsts = {name: self._tensors_of[name][0] for name in state}
        plain = {tensor: name for name, tensor in firsts.items() if tensor not in self._quantized}
        order = [plain[tensor] for tensor in self._weights.in_file_order(plain)]
        order += [name for name in state if name not in set(order)]
        return {name: tuple(state[name].shape) for name in order}

    def _dtype(self) -> str:
        config = self.skeleton.config
        found = getattr(config, "dtype", None) or torch.bfloat16
        return str(found).removeprefix("torch.")

    def read(self, parameter: str) -> Read:
        """See `Source`."""
        parts = [self._part(tensor) for tensor in self._tensors_of[parameter]]
        said = " and ".join(dict.fromkeys(how for _, how in parts))
        lattices = [part for part, _ in parts if isinstance(part, Integers)]
        integers = one_below_the_other(lattices) if len(lattices) == len(parts) else None
        if integers is not None:
            self._refuse_shape(parameter, integers.q)
            return on_grid(parameter.removesuffix(".weight"), integers, said)
        values = [part.values() if isinstance(part, Integers) else part for part, _ in parts]
        whole = values[0] if len(values) == 1 else torch.cat(values)
        self._refuse_shape(parameter, whole)
        return Read(said, whole)

    def _part(self, tensor: str) -> tuple[Integers | Tensor, str]:
        """A tensor of the files, or the integers that stand for it; and how it is stored."""
        module = self._quantized.get(tensor)
        if self._layout is None or module is None:
            values = self._weights(tensor)
            return values, _TYPES.get(values.dtype, str(values.dtype))
        return self._layout.read(Parts(module, self._load))

    def _refuse_shape(self, parameter: str, found: Tensor) -> None:
        if tuple(found.shape) != self.shapes[parameter]:
            raise ModelError(
                f"{parameter.removesuffix('.weight')} of {self.name} has the shape "
                f"{tuple(found.shape)}, and the model's configuration asks for "
                f"{self.shapes[parameter]}; use an intact copy"
            )

    def _load(self, name: str) -> Tensor | None:
        return self._weights(name) if name in self._weights.names else None

    def tokenizer(self) -> Any:
        """See `Source`."""
        return hub.load_tokenizer(self.name)

    def read_generation_config(self) -> None:
        """See `Source`."""
        read_generation_config(self.skeleton, self.name)
