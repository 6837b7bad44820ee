"""The texts of a run: blocks to train on, and windows to measure on."""

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from lrqat.checkpoint.manifest import sha256_of
from lrqat.errors import DataError
from lrqat.evaluation.perplexity import LEAST_CONTEXT, Windows
from lrqat.evaluation.text import EvaluationText, encode, window_bos
from lrqat.layers.methods import METHODS
from lrqat.text_files import ROWS, form_of
from lrqat.training import processes
from lrqat.training.config import TrainConfig
from lrqat.training.data.documents import (
    Document,
    TokenBlocks,
    documents,
    joined,
    pack,
    split_held_out,
)
from lrqat.training.data.rows import check_source
from lrqat.training.data.self_generated import write_blocks
from lrqat.training.settings import SELF

Say = Callable[[str], None]


@dataclass(frozen=True)
class Evaluation:
    """What perplexity is measured on.

    Attributes:
        name: of the file.
        sha256: of the file's bytes; of a held-out text, or of the tokens of held-out chats.
        windows: its tokens.
    """

    name: str
    sha256: str
    windows: Windows


@dataclass(frozen=True)
class Corpus:
    """What a run reads: blocks to train on, and a text to measure on."""

    blocks: TokenBlocks
    evaluation: Evaluation

    @property
    def windows(self) -> Windows:
        """Of `evaluation`."""
        return self.evaluation.windows


def check_texts(config: TrainConfig) -> None:
    """Raise DataError for a text that is not there. `data` may be "" where none is read."""
    if config.data not in ("", SELF):
        check_source(config.data)
    if config.eval_data and not Path(config.eval_data).is_file():
        raise DataError(f"no text file at {config.eval_data}; check --eval-data")


def evaluation_name(config: TrainConfig) -> str:
    """What the text that is measured on is called."""
    return Path(config.eval_data).name if config.eval_data else f"start of {Path(config.data).name}"


def read_corpus(config: TrainConfig, tokenizer: Any, model: Any, say: Say) -> Corpus:
    """Read and tokenise what `config` names; `model` writes the text of `--data self`.

    Raises:
        DataError: no text, or too little.
        ModelError: the model cannot write blocks of that length.
    """
    given = _read_evaluation(config, tokenizer) if config.eval_data else None
    if config.data == SELF:
        blocks = _own_text(config, tokenizer, model)
    else:
        texts = documents(config.data, tokenizer)
        if given is None:
            given, texts = _hold_out(config, tokenizer, texts, say)
        blocks = _tokenise(config, tokenizer, texts)
    assert given is not None  # --data self needs --eval-data, and the settings saw to it
    say(
        f"text: {len(blocks):,} blocks of {config.sequence_length} tokens to "
        f"{'train' if METHODS[config.method].trains else 'measure inputs'} on; "
        f"{given.windows.scored_tokens:,} scored tokens of {given.name}"
    )
    return Corpus(blocks, given)


def _read_evaluation(config: TrainConfig, tokenizer: Any) -> Evaluation:
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


def _hold_out(
    config: TrainConfig, tokenizer: Any, texts: Iterator[Document], say: Say
) -> tuple[Evaluation, Iterator[Document]]:
    """The start of the training text, and the rest of it.

    Where it is short its windows are too, but for a context that is longer than the default: that
    was asked for.
    """
    held_out, rest = split_held_out(texts)
    name = evaluation_name(config)
    ids, sha256 = _encoded(name, held_out, tokenizer)
    context = config.context
    if context <= TrainConfig.context:
        context = min(context, len(ids) // 2)
    if context < LEAST_CONTEXT <= config.context:
        raise DataError(
            f"a tenth of {config.data} is {len(ids)} tokens, too few to measure perplexity on; "
            "give --eval-data, or more text"
        )
    if context < config.context:
        say(
            f"the tenth of {config.data} that is held out has {len(ids)} tokens: perplexity is "
            f"measured on windows of {context}, not {config.context}; --eval-data takes another "
            "text"
        )
    windows = Windows.cut(ids, context, window_bos(tokenizer), config.eval_windows)
    return Evaluation(name, sha256, windows), rest


def _encoded(name: str, document: Document, tokenizer: Any) -> tuple[list[int], str]:
    """Token ids, and the sha256 of the text, or of the ids of chats as int32 (n,)."""
    if isinstance(document, str):
        text = EvaluationText.of(name, document)
        return encode(tokenizer, text.text), text.sha256
    return document, hashlib.sha256(np.array(document, "<i4").tobytes()).hexdigest()


def _tokenise(config: TrainConfig, tokenizer: Any, texts: Iterator[Document]) -> TokenBlocks:
    with tqdm(desc="tokenising", unit="token", unit_scale=True) as bar:
        return pack(
            texts,
            tokenizer,
            length=config.sequence_length,
            needed_tokens=_blocks(config) * config.sequence_length,
            progress=lambda total: bar.update(total - bar.n),
        )


def _blocks(config: TrainConfig) -> int:
    """How many the run looks at: in its steps, or where there are none to measure inputs."""
    if METHODS[config.method].trains:
        return config.sequences * processes.count()
    return math.ceil(config.importance_tokens / config.sequence_length)


def _own_text(config: TrainConfig, tokenizer: Any, model: Any) -> TokenBlocks:
    return write_blocks(
        model,
        tokenizer,
        blocks=_blocks(config),
        length=config.sequence_length,
        batch_size=config.batch_size,
        seed=config.seed,
        progress=lambda items: tqdm(items, desc="writing text", unit="batch"),
    )
