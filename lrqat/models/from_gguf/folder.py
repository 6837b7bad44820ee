"""The Hugging Face folder of a GGUF file, made once and kept in the user's cache.

    ~/.cache/lrqat/gguf/NAME-HASH/      (under XDG_CACHE_HOME where that is set)
        model.safetensors               bfloat16
        config.json

The hash is of the file's path, size and time, and of the version that read it. The tokenizer is
read anew each time, since it takes a second, and another one may be given in its place. Those used
last are kept (`kept_folders`).
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from lrqat import __version__
from lrqat.atomic_files import replaced_folder, write_json
from lrqat.errors import ModelError, refusing
from lrqat.models.configuration import build_config
from lrqat.models.from_gguf.kept_folders import note_use, remove_oldest
from lrqat.optional_libraries import load

_CONFIG = "config.json"
_MAGIC = b"GGUF"
_LONGEST_SECONDS = 3600.0  # to read a file: some hundred megabytes a second


def is_gguf(name: str | Path) -> bool:
    """Whether a model is named by a GGUF file: one that is there, or is called so."""
    path = Path(name)
    if path.suffix.lower() == ".gguf":
        return not path.is_dir()
    if not path.is_file():  # a pipe would be waited for
        return False
    try:
        with path.open("rb") as stream:
            return stream.read(4) == _MAGIC
    except OSError:
        return False


def folder_of(name: str | Path) -> str | Path:
    """`name`, or the folder of a GGUF file. Raises as `model_folder`."""
    return model_folder(name) if is_gguf(name) else name


def model_folder(name: str | Path) -> Path:
    """The folder of the model in a GGUF file, without a tokenizer.

    Raises:
        ModelError: there is no such file, it is damaged, or it is not understood.
        OutputError: the folder cannot be written.
    """
    path = existing(name)
    folder = _cache() / f"{path.stem}-{_identity(path)}"
    if _is_made(folder, path):
        note_use(folder / _CONFIG)
        return folder
    header, config = read_file(path)
    from lrqat.models.from_gguf.configuration import read_generation
    from lrqat.models.from_gguf.weights import write_weights

    folder.parent.mkdir(parents=True, exist_ok=True)
    with replaced_folder(folder, True, _CONFIG) as staging, _explained(path):
        write_weights(path, header, _skeleton(path, config), config, staging)
        write_json(staging / "generation_config.json", read_generation(header))
        write_json(staging / _CONFIG, config)  # its presence says that the folder is complete
    remove_oldest(folder.parent, _CONFIG)
    return folder


def _is_made(folder: Path, path: Path) -> bool:
    """Whether the folder is there; of several processes of a run, the first one makes it."""
    end = time.monotonic() + _LONGEST_SECONDS
    while not (folder / _CONFIG).is_file():
        if os.environ.get("LOCAL_RANK", "0") == "0":
            return False
        if time.monotonic() > end:
            raise ModelError(f"{path} has not been read by the first process; start it alone first")
        time.sleep(0.2)
    return True


@contextmanager
def tokenizer_folder(name: str | Path) -> Iterator[Path]:
    """A temporary folder with the tokenizer of a GGUF file.

    Raises:
        ModelError: as of `model_folder`, or a tokenizer that is not known to be the file's.
    """
    path = existing(name)
    header, config = read_file(path)
    from lrqat.models.from_gguf.tokenizer import write_tokenizer

    with tempfile.TemporaryDirectory(prefix="lrqat-") as made:
        folder = Path(made) / path.stem
        folder.mkdir()
        with _explained(path):
            write_json(folder / _CONFIG, config)
            write_tokenizer(path, header, folder, config)
        yield folder


def stored_parameters(name: str | Path) -> Iterator[tuple[str, Any, Callable[[], torch.Tensor]]]:
    """The parameters of the model in a GGUF file, read one at a time; nothing is kept.

    Yields:
        The parameter's name, its tensor's entry in the header, and a function that reads it.

    Raises:
        ModelError: as of `model_folder`.
    """
    path = existing(name)
    header, config = read_file(path)
    from lrqat.models.from_gguf.weights import read_parameters

    with _explained(path):
        yield from read_parameters(path, header, _skeleton(path, config), config)


def _skeleton(path: Path, config: dict[str, Any]) -> Any:
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(build_config(path, config))


def described(name: str | Path) -> str:
    """One line for people: what the file holds, and what became of it."""
    path = existing(name)
    header, _ = read_file(path)
    types = dict.fromkeys(info.type_name for info in header.tensors.values())
    return (
        f"{path.name}: {len(header.tensors)} tensors of {', '.join(types)}, dequantised to "
        f"bfloat16 in {model_folder(path)}"
    )


def tokens_of(name: str | Path) -> list[str]:
    """The texts of the tokens of a GGUF file, by id. Raises as `model_folder`."""
    header, _ = read_file(existing(name))
    return [str(token) for token in header.metadata.get("tokenizer.ggml.tokens", [])]


def said_by(name: str | Path) -> dict[str, Any]:
    """The metadata of a GGUF file, by key. Raises as `model_folder`."""
    return dict(read_file(existing(name))[0].metadata)


def existing(name: str | Path) -> Path:
    """The path of a file that is there. Raises ModelError."""
    path = Path(name)
    if not path.is_file():
        raise ModelError(f"no GGUF file at {name}; check the path")
    return path.resolve()


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "lrqat" / "gguf"


def _identity(path: Path) -> str:
    found = path.stat()
    said = f"{__version__} {path} {found.st_size} {found.st_mtime_ns}"
    return hashlib.sha256(said.encode()).hexdigest()[:16]


def read_file(path: Path) -> tuple[Any, dict[str, Any]]:
    """The header, and config.json. Raises as `model_folder`."""
    load("gguf", "lrqat[gguf]", needed_by="a GGUF file as --model")
    from exporters.gguf.file.shards import read_model
    from lrqat.models.from_gguf.configuration import read_configuration

    header = read_model(path)
    with _explained(path):
        return header, read_configuration(path, header)


def _explained(path: Path) -> Any:
    return refusing(ModelError, f"cannot read the model in {path}", "use an intact copy")
