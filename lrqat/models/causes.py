"""Why a library could not load a model, where its files tell more than the library's message."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from transformers.utils.peft_utils import find_adapter_config_file

from lrqat.errors import UserError
from lrqat.foreign_files import read_json

Cause = Callable[[BaseException], str | None]

# What transformers can make a tokenizer of, by the most usual names.
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model", "tekken.json",
)  # fmt: skip
_ADAPTER = "adapter_config.json"  # of PEFT
_BASE = "base_model_name_or_path"


def cause_of_model(name: str | Path) -> Cause:
    """For `lrqat.errors.refusing`: why the model `name`, a folder or hub id, does not load."""
    return lambda error: cause_of_code(error) or adapter(name)


def cause_of_tokenizer(name: str | Path) -> Cause:
    """The same of its tokenizer."""
    return lambda error: cause_of_code(error) or _no_files(Path(name))


def adapter(name: str | Path) -> str | None:
    """That `name` holds an adapter of PEFT and no model, and what to do; None if it is none.

    A hub id is asked for again: only call this when loading has failed.
    """
    with suppress(Exception):  # no connection, no such id: the first message says so
        found = find_adapter_config_file(str(name))
        if found is not None:
            return (
                f"it is a PEFT adapter{_base_of(Path(found))}, not a whole model; give the "
                "model that it was trained on to --model, and the adapter to --adapter, or merge "
                "it (peft: merge_and_unload, save_pretrained) and give the merged folder"
            )
    return None


def is_adapter(name: str | Path) -> bool:
    """Whether a local folder, which has no weights of a model, has those of an adapter."""
    return (Path(name) / _ADAPTER).is_file()


def _base_of(file: Path) -> str:
    """` of the model BASE`, as an adapter's configuration says."""
    try:
        values: dict[str, Any] = read_json(file)
        return f" of the model {values[_BASE]!r}" if values.get(_BASE) else ""
    except (UserError, AttributeError):
        return ""


def cause_of_code(error: BaseException) -> str | None:
    """That a model needs code of its own, if `error` of transformers says that."""
    if "trust_remote_code" not in str(error):
        return None
    return (
        "it brings Python code of its own (auto_map in its configuration), which runs only where "
        "it is asked for; read the code, and give --trust-remote-code to lrqat train or compare"
    )


def _no_files(folder: Path) -> str | None:
    if not folder.is_dir() or any((folder / name).is_file() for name in _TOKENIZER_FILES):
        return None
    return (
        f"the folder has no tokenizer file (looked for {', '.join(_TOKENIZER_FILES)}); copy "
        "tokenizer.json and tokenizer_config.json from the model that it was made from"
    )
