"""The metadata that says which model a file is: hyperparameters and vocabulary.

llama.cpp computes with these as much as with the weights (a rotary base, an epsilon, a merge), so
they are verified like them: `differing` compares what a file says with the checkpoint. Names,
provenance and `general.*` describe the file and change nothing it computes.
"""

from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFValueType as Type

from exporters.gguf.architecture import Architecture
from exporters.gguf.file.header import Header
from exporters.gguf.file.key_values import KeyValue
from exporters.gguf.graph.config_values import positive_int
from exporters.gguf.graph.hyperparameters import hyperparameters
from exporters.gguf.vocabulary import TokenizerFiles, load_vocabulary
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import ExportRefusedError

_PRE, _TOKENS, _NAME = "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "general.name"
_CALLED_PHI3 = ("phi-3", "phi3")
_PHI3_TOKENS = frozenset({"<s>", "</s>", "<unk>", "<|endoftext|>"})


def vocabulary_metadata(
    checkpoint: Checkpoint, pre: str | None
) -> tuple[list[KeyValue], list[str]]:
    """The `tokenizer.*` entries, and notes for the user.

    Args:
        checkpoint: its tokenizer files are read.
        pre: the user's name for the pre-tokenizer, or None to tell it from tokenizer.json.

    Raises:
        ExportRefusedError: a vocabulary that llama.cpp cannot reproduce.
    """
    files = TokenizerFiles.open(Path(checkpoint.path), checkpoint.config, checkpoint.files)
    size = positive_int(checkpoint.config, "vocab_size")
    vocabulary = load_vocabulary(files, size, pre)
    return vocabulary.metadata(), vocabulary.notes


def without_fatal_name(entries: list[KeyValue]) -> tuple[list[KeyValue], list[str]]:
    """`entries` without a model's name that would keep llama.cpp from loading it, and notes.

    llama.cpp changes some tokens of a model that is called Phi 3, and fails if they are not there
    (src/llama-vocab.cpp, "set attributes by model/tokenizer/architecture name").
    """
    values = {entry.key: entry.value for entry in entries}
    name = str(values.get(_NAME, "")).lower()
    missing = _PHI3_TOKENS.difference(values.get(_TOKENS, _PHI3_TOKENS))
    if not missing or not any(called in name for called in _CALLED_PHI3):
        return entries, []
    note = (
        f"the model's name is left out: llama.cpp takes {values[_NAME]!r} for a Phi 3 and does not "
        f"load one without the token {min(missing)!r}"
    )
    return [entry for entry in entries if entry.key != _NAME], [note]


def differing(header: Header, checkpoint: Checkpoint, architecture: Architecture) -> list[str]:
    """Keys whose value in the file is not the checkpoint's, or that are missing or too many.

    Raises:
        ExportRefusedError: the checkpoint has no form in GGUF.
    """
    expected = hyperparameters(architecture, checkpoint.config) + _vocabulary(header, checkpoint)
    wrong = [entry.key for entry in expected if not holds(entry, header.metadata.get(entry.key))]
    if header.said("general.architecture") != architecture.name:
        wrong.append("general.architecture")
    ours = (f"{architecture.name}.", "tokenizer.")
    keys = {entry.key for entry in expected}
    return wrong + [key for key in header.metadata if key.startswith(ours) and key not in keys]


def _vocabulary(header: Header, checkpoint: Checkpoint) -> list[KeyValue]:
    try:  # the file's own name of the pre-tokenizer, which may be one of several that do the same
        return vocabulary_metadata(checkpoint, str(header.said(_PRE)))[0]
    except ExportRefusedError:
        return vocabulary_metadata(checkpoint, None)[0]


def holds(entry: KeyValue, found: Any) -> bool:
    """Whether `found`, read back from a file, is what `entry` stores."""
    if found is None or isinstance(entry.value, list) != isinstance(found, list | np.ndarray):
        return False
    if Type.FLOAT32 in (entry.type, entry.item):  # the file holds the nearest float32
        return np.array_equal(np.asarray(entry.value, np.float32), np.asarray(found, np.float32))
    return bool(entry.value == (found.tolist() if isinstance(found, np.ndarray) else found))
