"""Text for evaluation and its tokens, counted as llama.cpp counts them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrqat.errors import DataError
from lrqat.text_files import ROWS, decode, form_of


@dataclass(frozen=True)
class EvaluationText:
    """A text and what identifies it.

    Attributes:
        name: file name.
        text: the characters, less one trailing newline, as llama-perplexity reads a file.
        sha256: of the file's bytes.
    """

    name: str
    text: str
    sha256: str

    @classmethod
    def read(cls, path: str | Path) -> "EvaluationText":
        """Read a UTF-8 file. Raises DataError if it is missing, empty or not plain text."""
        path = Path(path)
        if not path.is_file():
            raise DataError(f"no text file at {path}; give a file of plain UTF-8 text")
        if form_of(path) in ROWS:
            raise DataError(
                f"{path} is a file of rows, and perplexity is of plain text; write the text of the "
                "rows into a .txt file"
            )
        data = path.read_bytes()
        return cls.of(path.name, decode(path, data), data)

    @classmethod
    def of(cls, name: str, text: str, data: bytes | None = None) -> "EvaluationText":
        """Wrap a text that is in memory. Raises DataError if it is empty."""
        if not text.strip():
            raise DataError(f"{name} is empty; give a text of at least a few hundred words")
        digest = hashlib.sha256(text.encode() if data is None else data).hexdigest()
        return cls(name, text.removesuffix("\n"), digest)


def encode(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a whole text by a Hugging Face tokenizer.

    Special tokens are added as the tokenizer adds them; names of special tokens that occur in the
    text are text (llama.cpp's add_special = true, parse_special = false). A closing end-of-sequence
    token, which llama-perplexity does not allow for, is dropped.
    """
    ids = tokenizer(text, split_special_tokens=True, verbose=False)["input_ids"]
    return ids[:-1] if adds_eos(tokenizer) else ids


def window_bos(tokenizer: Any) -> int | None:
    """The id that starts every window: the BOS token if the tokenizer adds one, else None."""
    ids = tokenizer("a")["input_ids"]
    bos = tokenizer.bos_token_id
    return bos if bos is not None and ids[:1] == [bos] else None


def adds_eos(tokenizer: Any) -> bool:
    """Whether the tokenizer closes a text with its end-of-sequence token."""
    ids = tokenizer("a")["input_ids"]
    return tokenizer.eos_token_id is not None and len(ids) > 1 and ids[-1] == tokenizer.eos_token_id
