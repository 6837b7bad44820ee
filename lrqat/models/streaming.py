"""Loading and preparing a model weight by weight, so that it is never whole in full precision.

    model = load_streamed(name, plan, settings, dtype=torch.bfloat16, device="cpu")

The model is built on the meta device; each weight is read from its safetensors file when
`lrqat.models.preparation` asks for it and dropped when its frozen form exists. The peak is the
prepared model and the temporaries of one weight.

This works where the files name their tensors as the model names its parameters. transformers
renames and merges tensors of some models while loading (legacy names, experts in separate files,
prefixes that are missing); those, and files that are not safetensors, are left to it: the functions
return None, and the caller takes `lrqat.models.hub.load_model` and `prepare`.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from lrqat.models.from_gguf.folder import folder_of
from lrqat.models.preparation import Settings, prepare
from lrqat.models.stored_model import open_model
from lrqat.models.surgery import SurgeryPlan
from lrqat.models.weight_files import Weights
from lrqat.models.weight_misfits import refuse_not_finite


@dataclass(frozen=True)
class StreamedModel:
    """A model on the meta device, and its files.

    Attributes:
        model: without values, but for buffers that it computes itself.
        load: parameter name -> its value, read from its file.
    """

    model: Any
    load: Callable[[str], Tensor]
    _name: str
    _order: Callable[[Iterable[str]], Iterable[str]]
    _stored_as: dict[str, str]
    _tied: dict[str, str]
    _buffers: tuple[str, ...]

    def fill(self, wanted: Callable[[str], bool] = lambda name: True) -> None:
        """Give values to those parameters that have none yet and whose names are `wanted`."""
        named = self.model.named_parameters(remove_duplicate=False)
        empty = {name for name, p in named if p.is_meta and wanted(name)}
        shared = {name for name in empty if self._tied.get(name) in empty}
        tensors = {self._stored_as[name]: name for name in empty - shared}
        for tensor in self._order(tensors):
            value = nn.Parameter(self.load(tensors[tensor]), requires_grad=False)
            _set(self.model, tensors[tensor], value)
        for name in shared:
            _set(self.model, name, self.model.get_parameter(self._tied[name]))

    def complete(self, device: torch.device | str) -> Any:
        """The model on `device`, in evaluation mode, with every value that it still lacked."""
        self.fill()
        for name in self._buffers:
            self.model.get_buffer(name).copy_(self.load(name))
        read_generation_config(self.model, self._name)
        return self.model.to(device).eval()


def open_streamed(
    model_name: str,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
) -> StreamedModel | None:
    """A model whose weights are read one at a time; None: see the module's text.

    Args:
        model_name: a local folder, or an id on the Hugging Face hub.
        dtype: compute type.
        device: where the weights are put.
        trust_remote_code: run Python code that the model brings.

    Raises:
        ModelError: as `open_model`, for tensors that are not the model's; one that is not finite.
    """
    stored = open_model(model_name, trust_remote_code=trust_remote_code, download=True)
    weights = stored.weights
    if weights is None:
        return None
    model = unfilled_model(stored.config, dtype, trust_remote_code)
    tied: dict[str, str] = dict(model.all_tied_weights_keys)
    stored_as = _match(model, weights, model.state_dict(), tied, dtype)
    if stored_as is None:
        return None

    def load(name: str) -> Tensor:
        value = weights(stored_as[name])
        # A copy: a view would keep the file mapped, and change if somebody writes into it.
        kind = dtype if value.is_floating_point() else value.dtype
        value = value.to(device=device, dtype=kind, copy=True)
        refuse_not_finite(model_name, [(name, value)])
        return value

    buffers = tuple(name for name, _ in model.named_buffers() if name in stored_as)
    return StreamedModel(model, load, model_name, weights.in_file_order, stored_as, tied, buffers)


def load_streamed(
    model_name: str,
    plan: SurgeryPlan,
    settings: Settings,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    importance: Mapping[str, Tensor] | None = None,
    progress: Any = None,
    trust_remote_code: bool = False,
) -> Any:
    """What `prepare(hub.load_model(model_name), plan, settings)` returns, bit for bit.

    With the same state of torch's random generator: A and B are drawn in the same order.

    Args:
        model_name: as for `open_streamed`.
        plan: of this model.
        settings: as for `prepare`.
        dtype: compute type.
        device: where the weights are put and prepared.
        importance: as for `prepare`.
        progress: as for `prepare`.
        trust_remote_code: run Python code that the model brings.

    Returns:
        The prepared model in evaluation mode, or None: see the module's text.

    Raises:
        ModelError: as `open_streamed`.
        UserError: settings that do not fit the plan.
    """
    streamed = open_streamed(
        model_name, dtype=dtype, device=device, trust_remote_code=trust_remote_code
    )
    if streamed is None:
        return None
    prepare(
        streamed.model,
        plan,
        settings,
        importance=importance,
        load=streamed.load,
        progress=progress,
    )
    return streamed.complete(device)


def unfilled_model(config: Any, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """A model of `config`: its parameters on the meta device, its buffers computed."""
    # Building it draws random numbers, and those that follow must not depend on that.
    with torch.random.fork_rng(devices=[]), init_empty_weights(include_buffers=False):
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, trust_remote_code=trust_remote_code
        )


def _match(
    model: Any,
    weights: Weights,
    expected: Iterable[str],
    tied: Mapping[str, str],
    dtype: torch.dtype,
) -> dict[str, str] | None:
    """Parameter -> tensor that holds it; None if they are not simply the same."""
    if dtype != torch.float32 and (
        model._keep_in_fp32_modules or model._keep_in_fp32_modules_strict
    ):
        return None  # transformers loads some of its weights in another dtype
    stored_as = {name: name for name in expected if name in weights.names}
    for one, other in tied.items():  # of tied weights, the file may have either
        if one in stored_as:
            stored_as.setdefault(other, one)
        elif other in stored_as:
            stored_as[one] = other
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    if not parameters <= stored_as.keys():
        return None
    converters = [t for t in get_model_conversion_mapping(model) if isinstance(t, WeightConverter)]
    patterns = [pattern for converter in converters for pattern in converter.source_patterns]
    if any(re.search(pattern, name) for pattern in patterns for name in stored_as.values()):
        return None
    return stored_as


def _set(model: nn.Module, name: str, value: nn.Parameter) -> None:
    module, _, own = name.rpartition(".")
    setattr(model.get_submodule(module), own, value)


def read_generation_config(model: Any, name: str) -> None:
    """Give a model that was made from its configuration the folder's generation settings."""
    try:
        model.generation_config = GenerationConfig.from_pretrained(folder_of(name))
    except OSError:
        return  # it has none; that of its configuration stands
