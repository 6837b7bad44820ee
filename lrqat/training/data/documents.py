"""Training text: files or a hub dataset, to packed blocks of tokens.

`.txt` is one document; `.jsonl`, `.parquet` and Hugging Face datasets are one document a row, in a
column `text`, or `messages` (put through the tokenizer's chat template). Documents are tokenised,
closed with the end-of-sequence token, laid end to end and cut into blocks of one length, so no
padding is ever computed. The start of the text is held out for evaluation when no other text is
given for it.
"""

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from numpy.typing import NDArray

from lrqat.errors import DataError
from lrqat.evaluation.text import window_bos

# Characters tokenised in one call: bounds memory, and lets the tokenizer use every core.
_PIECE = 1 << 15
_PIECES_PER_CALL = 64
# A run keeps at most this many tokens in memory, or as many as it will look at: 256 MB.
_MOST_TOKENS = 1 << 26
_HELD_OUT_CHARACTERS = 200_000
_LOADERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}


class TokenBlocks(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Blocks of `length` tokens.

    Attributes:
        tokens: int32 (blocks, length).
    """

    def __init__(self, tokens: NDArray[np.int32], length: int) -> None:
        self.tokens = tokens[: len(tokens) // length * length].reshape(-1, length)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": torch.from_numpy(self.tokens[index].astype(np.int64))}


def documents(source: str, tokenizer: Any) -> Iterator[str]:
    """The documents of a file or hub dataset, one at a time.

    Args:
        source: path of a .txt, .jsonl or .parquet file, or the name of a Hugging Face dataset
            (its `train` split, streamed; `name:config` picks a configuration).
        tokenizer: its chat template renders rows of `messages`.

    Raises:
        DataError: nothing there, not readable, or no usable column.
    """
    path = Path(source)
    if path.suffix == ".txt" or (path.is_file() and path.suffix not in _LOADERS):
        yield _read_text(path)
        return
    for row in _rows(source, path):
        text = _text_of(row, tokenizer, source)
        if text:
            yield text


def split_held_out(texts: Iterator[str]) -> tuple[str, Iterator[str]]:
    """Take the start of a text for evaluation: (held-out text, the remaining documents).

    At most 200,000 characters, and of a single document at most a twentieth, cut at a line's end.

    Raises:
        DataError: there is no text.
    """
    first = next(texts, None)
    if first is None or not first.strip():
        raise DataError("the training text is empty; give --data some text")
    second = next(texts, None)
    if second is None:
        end = first.rfind("\n", 0, min(_HELD_OUT_CHARACTERS, len(first) // 20)) + 1
        end = end or min(_HELD_OUT_CHARACTERS, len(first) // 20)
        return first[:end], iter([first[end:]])
    held_out, size = [first], len(first)
    rest: Iterator[str] = itertools.chain([second], texts)
    while size < _HELD_OUT_CHARACTERS // 4:
        following = list(itertools.islice(rest, 2))
        if len(following) < 2:  # keep at least the last document for training
            rest = iter(following)
            break
        held_out.append(following[0])
        size += len(following[0])
        rest = itertools.chain(following[1:], rest)
    return "\n".join(held_out), rest


def pack(
    texts: Iterable[str], tokenizer: Any, *, length: int, needed_tokens: int, progress: Any = None
) -> TokenBlocks:
    """Tokenise documents into blocks of `length` tokens.

    Args:
        texts: documents.
        tokenizer: a Hugging Face tokenizer.
        length: tokens a block.
        needed_tokens: what the run will look at; reading stops at the larger of this and 2^26.
        progress: called with the number of tokens so far, or None.

    Raises:
        DataError: less than one block of text.
    """
    parts: list[NDArray[np.int32]] = []
    total = 0
    for part in _token_parts(texts, tokenizer):
        parts.append(part)
        total += len(part)
        if progress:
            progress(total)
        if total >= max(needed_tokens, _MOST_TOKENS):
            break
    if total < length:
        raise DataError(
            f"the training text has {total} tokens, less than one sequence of {length}; give more "
            "text, or a smaller --sequence-length"
        )
    return TokenBlocks(np.concatenate(parts), length)


def _token_parts(texts: Iterable[str], tokenizer: Any) -> Iterator[NDArray[np.int32]]:
    bos, eos = window_bos(tokenizer), tokenizer.eos_token_id
    for text in texts:
        if bos is not None:
            yield np.array([bos], np.int32)
        pieces = _pieces(text)
        while group := list(itertools.islice(pieces, _PIECES_PER_CALL)):
            ids = tokenizer(
                group, add_special_tokens=False, split_special_tokens=True, verbose=False
            )["input_ids"]
            yield np.fromiter(itertools.chain.from_iterable(ids), np.int32)
        if eos is not None:
            yield np.array([eos], np.int32)


def _pieces(text: str) -> Iterator[str]:
    """Cut a document at line ends into pieces of about `_PIECE` characters."""
    start = 0
    while start < len(text):
        end = text.find("\n", start + _PIECE) + 1 or len(text)
        yield text[start:end]
        start = end


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise DataError(f"no text file at {path}; check --data")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); convert it first") from None
    if not text.strip():
        raise DataError(f"{path} is empty; give --data some text")
    return text


def _rows(source: str, path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix in _LOADERS and not path.is_file():
        raise DataError(f"no file at {path}; check --data")
    name, _, config = source.partition(":")
    try:
        if path.is_file():
            loader = _LOADERS[path.suffix]
            rows = datasets.load_dataset(
                loader, data_files=str(path), split="train", streaming=True
            )
        else:
            rows = datasets.load_dataset(name, config or None, split="train", streaming=True)
        yield from rows
    except DataError:
        raise
    except Exception as error:  # datasets wraps whatever pyarrow, the network or a script raises
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"cannot read {source!r} as a file or a Hugging Face dataset: {reason}"
        ) from None


def _text_of(row: dict[str, Any], tokenizer: Any, source: str) -> str:
    if isinstance(row.get("text"), str):
        return row["text"]
    if isinstance(row.get("messages"), list):
        if not tokenizer.chat_template:
            raise DataError(
                f"{source} holds chats (`messages`) but the tokenizer has no chat template; give "
                "rows with a `text` column"
            )
        return tokenizer.apply_chat_template(row["messages"], tokenize=False)
    raise DataError(
        f"{source} has the columns {', '.join(map(str, row))}; one called `text` (strings) or "
        "`messages` (chats) is needed"
    )
