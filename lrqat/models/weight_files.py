"""The safetensors files of a model: which tensors they hold, and reading one at a time."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lrqat.errors import ModelError, UserError, first_line
from lrqat.foreign_files import read_json

_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SHARDS = "model-*.safetensors"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "BOOL": torch.bool,
}


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

    def on_meta(self, name: str) -> Tensor:
        """A tensor of the same type and shape on the meta device. Raises ModelError."""
        try:
            stored = self._open(name).get_slice(name)
            dtype = _DTYPES.get(stored.get_dtype(), torch.uint8)
            return torch.empty(stored.get_shape(), dtype=dtype, device="meta")
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


def open_weights(
    name_or_folder: str | Path, config: Any, *, download: bool = True
) -> Weights | None:
    """The safetensors files of a model, in one file or in shards with an index.

    As in transformers, one file goes before shards.

    Args:
        name_or_folder: a local folder, or an id on the Hugging Face hub.
        config: the model's configuration, which knows the hub's revision.
        download: fetch the files of a hub id that are not on this machine.

    Returns:
        The weights, or None: the model has no safetensors files of the usual names, or they are
        not here and are not to be downloaded.

    Raises:
        ModelError: a file that is missing, truncated or not what it should be; no connection.
    """
    folder, revision = Path(name_or_folder), getattr(config, "_commit_hash", None)
    if not folder.is_dir():
        found = (_download if download else _cached)(str(name_or_folder), revision)
        if found is None:
            return None
        folder = found
    if (folder / _SINGLE).is_file():
        names = _open_file(folder / _SINGLE).keys()
        return Weights(folder, dict.fromkeys(names, _SINGLE))
    if (folder / _INDEX).is_file():
        return Weights(folder, _read_index(folder / _INDEX))
    return None


def _cached(name: str, revision: str | None) -> Path | None:
    """The folder of a hub id if all its weight files are on this machine."""
    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True))
        index = folder / _INDEX
        if index.is_file() and not (folder / _SINGLE).is_file():
            needed = set(read_json(index)["weight_map"].values())
            return folder if all((folder / file).is_file() for file in needed) else None
    except (HfHubHTTPError, OSError, ValueError, KeyError, TypeError, AttributeError, UserError):
        return None
    return folder


def _download(name: str, revision: str | None) -> Path:
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=[_SINGLE, _INDEX, _SHARDS])
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = first_line(error)
        raise ModelError(
            f"cannot download the weights of {name!r}: {reason} Check the name and the "
            "connection, or give a local folder"
        ) from None


def _read_index(path: Path) -> dict[str, str]:
    """Tensor -> file, from an index that somebody else wrote."""
    try:
        entries = dict(read_json(path)["weight_map"].items())
    except (UserError, KeyError, TypeError, AttributeError) as error:
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
