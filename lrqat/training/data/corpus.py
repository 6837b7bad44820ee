"""The texts of a run: blocks to train on, and windows to measure on."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrqat.checkpoint.manifest import sha256_of
from lrqat.errors import DataError
from lrqat.evaluation.perplexity import Windows
from lrqat.layers.methods import METHODS
from lrqat.models.documents import keeps_apart
from lrqat.progress import tqdm
from lrqat.training import processes
from lrqat.training.config import TrainConfig
from lrqat.training.data.apart import ALONE, POSITIONS
from lrqat.training.data.blocks import TokenBlocks
from lrqat.training.data.documents import Document, Say, documents, pack
from lrqat.training.data.measured import Evaluation, hold_out, read_evaluation
from lrqat.training.data.mixture import counts_of, mix
from lrqat.training.data.packing import STREAM
from lrqat.training.data.rows import STANDARD_INPUT, check_source
from lrqat.training.data.self_answers import Writing, answers_file, write_answers
from lrqat.training.data.self_generated import write_blocks
from lrqat.training.data.sources import SELF, Source


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
        for source in config.sources:
            check_source(str(source.prompts or source.name))
    if config.eval_data and not Path(config.eval_data).is_file():
        raise DataError(f"no text file at {config.eval_data}; check --eval-data")


def sha256_of_data(config: TrainConfig) -> str | list[str | None] | None:
    """Of each source that is a file; of one source not in a list."""
    paths = [source.prompts or Path(source.name) for source in config.sources]
    found = [sha256_of(path) if path.is_file() else None for path in paths]
    return found[0] if len(found) == 1 else found


def read_corpus(config: TrainConfig, tokenizer: Any, model: Any, say: Say) -> Corpus:
    """Read and tokenise what `config` names; `model` writes the text of `--data self`.

    Raises:
        DataError: no text, or too little; or standard input, which several processes cannot share.
        ModelError: the model cannot write blocks of that length.
    """
    given = read_evaluation(config, tokenizer) if config.eval_data else None
    how = _how(config, model, say)
    if config.data == SELF:
        blocks = _own_text(config, tokenizer, model)
    else:
        sources = _sources(config, tokenizer, model, say)
        texts = [(source, _documents(config, source, tokenizer, say)) for source in sources]
        rest = [text for _, text in texts]
        if given is None:
            given, rest = hold_out(config, tokenizer, texts, say)
        blocks = _tokenise(config, tokenizer, rest, how, say)
    assert given is not None  # --data self needs --eval-data, and the settings saw to it
    say(
        f"text: {len(blocks):,} blocks of {config.sequence_length} tokens to "
        f"{'train' if METHODS[config.method].trains else 'measure inputs'} on; "
        f"{given.windows.scored_tokens:,} scored tokens of {given.name}"
    )
    return Corpus(blocks, given)


def _sources(config: TrainConfig, tokenizer: Any, model: Any, say: Say) -> tuple[Source, ...]:
    """What is read: of prompts, the file of the model's answers, which is written if need be."""
    prompts = config.sources[0].prompts
    if prompts is None:
        return config.sources
    length, folder = config.sequence_length, Path(config.output)
    writing = Writing(length, _blocks(config) * length, config.batch_size, config.seed)
    path = answers_file(folder, prompts, config.source, writing)
    if processes.is_main() and not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)

        def bar(items: Any) -> Any:
            return tqdm(items, desc="writing answers", unit="batch")

        count = write_answers(model, tokenizer, prompts, path, writing, bar)
        say(f"{count:,} answers of the model in {path}, which --data takes, too")
    processes.wait()
    return (Source(str(path)),)


def _documents(config: TrainConfig, source: Source, tokenizer: Any, say: Say) -> Iterator[Document]:
    if source.name == STANDARD_INPUT and processes.count() > 1:
        raise DataError(
            "standard input is read by one process, and this run has "
            f"{processes.count()}; write the text to a file, and give that to --data"
        )
    return documents(source.name, tokenizer, loss_on=config.loss_on, say=say)


def _how(config: TrainConfig, model: Any, say: Say) -> str:
    """How documents are kept apart, if they are.

    Raises:
        DataError: the model does not do so itself, and is to be trained block by block.
    """
    if config.packing == STREAM:
        return STREAM
    if model is not None and keeps_apart(model):
        return POSITIONS
    why = (
        "its weights are read one at a time, so that nobody can try whether it keeps documents of "
        "a sequence apart"
        if model is None
        else "it does not keep documents of a sequence apart"
    )
    if config.by_blocks:
        raise DataError(
            f"--packing documents: {why}; the block-wise stage would learn what crosses them. "
            "Give --stages model, which then has one document in a sequence, or --packing stream"
        )
    say(f"one document in each sequence, and the rest of it not learned: {why}")
    return ALONE


def _tokenise(
    config: TrainConfig, tokenizer: Any, texts: list[Iterator[Document]], how: str, say: Say
) -> TokenBlocks:
    needed, sources = _blocks(config), config.sources
    parts = [
        _pack(config, tokenizer, text, math.ceil(needed * (source.share or 1)), how, say)
        for source, text in zip(sources, texts, strict=True)
    ]
    if len(parts) == 1:
        return parts[0]
    shares = [source.share for source in sources if source.share is not None]
    sizes = [len(part) for part in parts]
    counts = counts_of(sizes, shares or None, needed)
    for source, size, count in zip(sources, sizes, counts, strict=True):
        again = f", read {count / size:.1f} times" if count > size else ""
        say(f"{source.name}: {count:,} blocks of the text{again}")
    return mix(parts, counts)


def _pack(
    config: TrainConfig,
    tokenizer: Any,
    text: Iterator[Document],
    blocks: int,
    how: str,
    say: Say,
) -> TokenBlocks:
    with tqdm(desc="tokenising", unit="token", unit_scale=True) as bar:
        return pack(
            text,
            tokenizer,
            length=config.sequence_length,
            needed_tokens=blocks * config.sequence_length,
            how=how,
            progress=lambda total: bar.update(total - bar.n),
            say=say,
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
