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
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from lrqat.errors import ModelError
from lrqat.foreign_files import ForeignFileError, read_json
from lrqat.models import hub
from lrqat.models.preparation import Settings, prepare
from lrqat.models.surgery import SurgeryPlan

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARDS = "model-*.safetensors"


class Weights:
    """The tensors of a model folder, read one at a time.

    Attributes:
        folder: where the files are.
        names: of all tensors.
    """

    def __init__(self, folder: Path, file_of: Mapping[str, str]) -> None:
        self.folder, self._file_of = folder, dict(file_of)
        self.names = frozenset(self._file_of)
        # One file is kept open: its mapped pages count as this process's memory.
        self._opened: tuple[str, Any] | None = None

    def __call__(self, name: str) -> Tensor:
        """Read one tensor, as stored: a view of the mapped file. Raises ModelError."""
        try:
            return self._open(name).get_tensor(name)
        except SafetensorError as error:
            raise _damaged(self.path(name), error) from None

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor, from the file's header. Raises ModelError."""
        try:
            return tuple(self._open(name).get_slice(name).get_shape())
        except SafetensorError as error:
            raise _damaged(self.path(name), error) from None

    def path(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self.folder / self._file_of[name]

    def in_file_order(self, names: Iterable[str]) -> list[str]:
        """`names`, those of one file together."""
        return sorted(names, key=lambda name: (self._file_of[name], name))

    def _open(self, name: str) -> Any:
        file = self._file_of[name]
        if self._opened is None or self._opened[0] != file:
            self._opened = None
            self._opened = file, _open_file(self.folder / file)
        return self._opened[1]


def open_weights(name_or_folder: str | Path, config: Any) -> Weights | None:
    """The safetensors files of a model, in one file or in shards with an index.

    Args:
        name_or_folder: a local folder, or an id on the Hugging Face hub, which is downloaded.
        config: the model's configuration, which knows the hub's revision.

    Returns:
        The weights, or None: the model has no safetensors files of the usual names.

    Raises:
        ModelError: a file that is missing, truncated or not what it should be; no connection.
    """
    folder = Path(name_or_folder)
    if not folder.is_dir():
        folder = _download(str(name_or_folder), getattr(config, "_commit_hash", None))
    if (folder / _INDEX).is_file():
        return Weights(folder, _read_index(folder / _INDEX))
    if (folder / _SINGLE).is_file():
        names = _open_file(folder / _SINGLE).keys()
        return Weights(folder, dict.fromkeys(names, _SINGLE))
    return None


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
        model_name: a local folder, or an id on the Hugging Face hub.
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
        ModelError: as `open_weights`; a tensor of another shape than the model's; not finite.
        UserError: settings that do not fit the plan.
    """
    config = hub.load_config(model_name, trust_remote_code=trust_remote_code)
    weights = open_weights(model_name, config)
    if weights is None:
        return None
    model = _without_weights(config, dtype, trust_remote_code)
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    tied: dict[str, str] = dict(model.all_tied_weights_keys)
    stored_as = _match(model, weights, expected, tied, dtype)
    if stored_as is None:
        return None
    _refuse_other_shapes(weights, expected, stored_as)

    def load(name: str) -> Tensor:
        value = weights(stored_as[name])
        # A copy: a view would keep the file mapped, and change if somebody writes into it.
        kind = dtype if value.is_floating_point() else value.dtype
        return value.to(device=device, dtype=kind, copy=True)

    buffers = [name for name, _ in model.named_buffers() if name in stored_as]
    prepare(model, plan, settings, importance=importance, load=load, progress=progress)
    _fill(model, weights.in_file_order, load, stored_as, tied)
    for name in buffers:
        model.get_buffer(name).copy_(load(name))
    _generation_config(model, model_name)
    return model.to(device).eval()


def _without_weights(config: Any, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """The model with its parameters on meta and its buffers computed."""
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


def _refuse_other_shapes(
    weights: Weights, expected: Mapping[str, tuple[int, ...]], stored_as: Mapping[str, str]
) -> None:
    for tensor in weights.in_file_order(set(stored_as.values())):
        shape = weights.shape(tensor)
        for name in (name for name, stored in stored_as.items() if stored == tensor):
            if shape != expected[name]:
                raise ModelError(
                    f"{weights.path(tensor)}: {tensor} has shape {shape}, and the model's "
                    f"configuration asks for {expected[name]}; use an intact copy of the model"
                )


def _fill(
    model: nn.Module, order: Any, load: Any, stored_as: Mapping[str, str], tied: Mapping[str, str]
) -> None:
    """Give values to what `prepare` left on meta."""
    empty = {name for name, p in model.named_parameters(remove_duplicate=False) if p.is_meta}
    shared = {name for name in empty if tied.get(name) in empty}
    tensors = {stored_as[name]: name for name in empty - shared}
    for tensor in order(tensors):
        value = nn.Parameter(load(tensors[tensor]), requires_grad=False)
        _set(model, tensors[tensor], value)
    for name in shared:
        _set(model, name, model.get_parameter(tied[name]))


def _set(model: nn.Module, name: str, value: nn.Parameter) -> None:
    module, _, own = name.rpartition(".")
    setattr(model.get_submodule(module), own, value)


def _generation_config(model: Any, name: str) -> None:
    try:
        model.generation_config = GenerationConfig.from_pretrained(name)
    except OSError:
        return  # it has none; that of its configuration stands


def _download(name: str, revision: str | None) -> Path:
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=[_SINGLE, _INDEX, _SHARDS])
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"cannot download the weights of {name!r}: {reason} Check the name and the "
            "connection, or give a local folder"
        ) from None


def _read_index(path: Path) -> dict[str, str]:
    """Tensor -> file, from an index that somebody else wrote."""
    try:
        entries = dict(read_json(path)["weight_map"].items())
    except (ForeignFileError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, error) from None
    for name, file in entries.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise _damaged(path, f"it puts {name!r} in {file!r}, which is not a file beside it")
    names: set[str] = set()
    for file in sorted(set(entries.values())):
        names.update(_open_file(path.parent / file).keys())
    missing = sorted(entries.keys() - names)
    if missing:
        raise _damaged(path.parent / entries[missing[0]], f"it does not hold {missing[0]!r}")
    return entries


def _open_file(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, reason: object) -> ModelError:
    text = str(reason).strip() or type(reason).__name__
    return ModelError(
        f"{path} is damaged or missing: {text.splitlines()[0]}; use an intact copy of the model"
    )
