"""The Hugging Face folder of a GGUF file, made once and kept in the user's cache.

    ~/.cache/lrqat/gguf/NAME-HASH/      see `lrqat.models.kept_folders`
        model.safetensors               bfloat16
        config.json

The tokenizer is read anew each time, since it takes a second, and another one may be given in its
place.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from lrqat.atomic_files import write_json
from lrqat.errors import ModelError, refusing
from lrqat.models.configuration import build_config
from lrqat.models.kept_folders import file_identity, kept_folder
from lrqat.optional_libraries import load

_CONFIG = "config.json"
_MAGIC = b"GGUF"


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
    return kept_folder("gguf", path.stem, file_identity(path), lambda made: _write(path, made))


def _write(path: Path, folder: Path) -> None:
    header, config = read_file(path)
    from lrqat.models.from_gguf.configuration import read_generation
    from lrqat.models.from_gguf.weights import write_weights

    with _explained(path):
        write_weights(path, header, _skeleton(path, config), config, folder)
        write_json(folder / "generation_config.json", read_generation(header))
        write_json(folder / _CONFIG, config)


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
