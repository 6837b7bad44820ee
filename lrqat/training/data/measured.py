"""The text that perplexity is measured on: a file of its own, or the start of the training text."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lrqat.checkpoint.manifest import sha256_of
from lrqat.errors import DataError
from lrqat.evaluation.perplexity import LEAST_CONTEXT, Windows
from lrqat.evaluation.text import EvaluationText, encode, window_bos
from lrqat.text_files import ROWS, form_of
from lrqat.training.config import TrainConfig
from lrqat.training.data.documents import Document, Say, documents, joined, split_held_out
from lrqat.training.data.sources import Source


@dataclass(frozen=True)
class Evaluation:
    """What perplexity is measured on.

    Attributes:
        name: of the file.
        sha256: of the file's bytes; of a held-out text, or of the tokens of held-out chats; of
            several sources, of theirs in hexadecimal.
        windows: its tokens.
    """

    name: str
    sha256: str
    windows: Windows


def evaluation_name(config: TrainConfig) -> str:
    """What the text that is measured on is called."""
    if config.eval_data:
        return Path(config.eval_data).name
    return f"start of {' and '.join(source.short for source in config.sources)}"


def read_evaluation(config: TrainConfig, tokenizer: Any) -> Evaluation:
    """The text of --eval-data: plain text as `lrqat evaluate` reads it, or rows as trained on."""
    path = Path(str(config.eval_data))
    if form_of(path) in ROWS:
        ids, _ = _encoded(path.name, joined(list(documents(str(path), tokenizer))), tokenizer)
        sha256 = sha256_of(path)
    else:
        text = EvaluationText.read(path)
        ids, sha256 = encode(tokenizer, text.text), text.sha256
    windows = Windows.cut(ids, config.context, window_bos(tokenizer), config.eval_windows)
    return Evaluation(evaluation_name(config), sha256, windows)


def hold_out(
    config: TrainConfig,
    tokenizer: Any,
    texts: Sequence[tuple[Source, Iterator[Document]]],
    say: Say,
) -> tuple[Evaluation, list[Iterator[Document]]]:
    """The start of every source, and the rest of each.

    Where one is short all windows are too, but for a context that is longer than the default: that
    was asked for.
    """
    split = [(source, *split_held_out(text)) for source, text in texts]
    name = evaluation_name(config)
    encoded = [_encoded(name, held_out, tokenizer) for _, held_out, _ in split]
    ids = [found for found, _ in encoded]
    shortest = min(range(len(ids)), key=lambda i: len(ids[i]))
    context = _context(config, texts[shortest][0].name, len(ids[shortest]), say)
    bos = window_bos(tokenizer)
    parts = [
        Windows.cut(found, context, bos, limit).tokens
        for found, limit in zip(ids, _limits(config, ids), strict=True)
    ]
    hashes = [sha256 for _, sha256 in encoded]
    sha256 = hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
    windows = Windows(np.concatenate(parts), context)
    return Evaluation(name, sha256, windows), [rest for *_, rest in split]


def _context(config: TrainConfig, name: str, tokens: int, say: Say) -> int:
    """Tokens a window, of a source of which `tokens` are held out."""
    context = config.context
    if context <= TrainConfig.context:
        context = min(context, tokens // 2)
    if context < LEAST_CONTEXT <= config.context:
        raise DataError(
            f"a tenth of {name} is {tokens} tokens, too few to measure perplexity on; "
            "give --eval-data, or more text"
        )
    if context < config.context:
        say(
            f"the tenth of {name} that is held out has {tokens} tokens: perplexity is "
            f"measured on windows of {context}, not {config.context}; --eval-data takes another "
            "text"
        )
    return context


def _limits(config: TrainConfig, ids: Sequence[Sequence[int]]) -> list[int]:
    """Windows of each source at most: by its share, or by its length."""
    shares = [source.share or len(found) for source, found in zip(config.sources, ids, strict=True)]
    return [max(1, round(config.eval_windows * share / sum(shares))) for share in shares]


def _encoded(name: str, document: Document, tokenizer: Any) -> tuple[list[int], str]:
    """Token ids, and the sha256 of the text, or of the ids of chats as int32 (n,)."""
    if isinstance(document, str):
        text = EvaluationText.of(name, document)
        return encode(tokenizer, text.text), text.sha256
    return document.ids, hashlib.sha256(np.array(document.ids, "<i4").tobytes()).hexdigest()
