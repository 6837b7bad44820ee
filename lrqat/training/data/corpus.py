"""The texts of a run: blocks to train on, and windows to measure on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from lrqat.evaluation.perplexity import Windows
from lrqat.evaluation.text import EvaluationText, encode, window_bos
from lrqat.training import processes
from lrqat.training.config import TrainConfig
from lrqat.training.data.documents import TokenBlocks, documents, pack, split_held_out
from lrqat.training.data.self_generated import write_blocks
from lrqat.training.settings import SELF

Say = Callable[[str], None]


@dataclass(frozen=True)
class Corpus:
    """What a run reads.

    Attributes:
        blocks: to train on.
        evaluation: the text that perplexity is measured on.
        windows: its tokens.
    """

    blocks: TokenBlocks
    evaluation: EvaluationText
    windows: Windows


def read_corpus(config: TrainConfig, tokenizer: Any, model: Any, say: Say) -> Corpus:
    """Read and tokenise what `config` names; `model` writes the text of `--data self`.

    Raises:
        DataError: no text, or too little.
        ModelError: the model cannot write blocks of that length.
    """
    if config.data == SELF:
        evaluation, blocks = _own_text(config, tokenizer, model)
    else:
        evaluation, blocks = _given_text(config, tokenizer)
    windows = Windows.cut(
        encode(tokenizer, evaluation.text),
        config.context,
        window_bos(tokenizer),
        config.eval_windows,
    )
    say(
        f"text: {len(blocks):,} blocks of {config.sequence_length} tokens to train on; "
        f"{windows.scored_tokens:,} scored tokens of {evaluation.name}"
    )
    return Corpus(blocks, evaluation, windows)


def _given_text(config: TrainConfig, tokenizer: Any) -> tuple[EvaluationText, TokenBlocks]:
    texts = documents(config.data, tokenizer)
    if config.eval_data:
        evaluation = EvaluationText.read(config.eval_data)
    else:
        held_out, texts = split_held_out(texts)
        evaluation = EvaluationText.of(f"start of {Path(config.data).name}", held_out)
    with tqdm(desc="tokenising", unit="token", unit_scale=True) as bar:
        blocks = pack(
            texts,
            tokenizer,
            length=config.sequence_length,
            needed_tokens=config.steps * config.tokens_per_step * processes.count(),
            progress=lambda total: bar.update(total - bar.n),
        )
    return evaluation, blocks


def _own_text(
    config: TrainConfig, tokenizer: Any, model: Any
) -> tuple[EvaluationText, TokenBlocks]:
    evaluation = EvaluationText.read(str(config.eval_data))
    blocks = write_blocks(
        model,
        tokenizer,
        blocks=config.steps * config.batch_size * config.gradient_accumulation * processes.count(),
        length=config.sequence_length,
        batch_size=config.batch_size,
        seed=config.seed,
        progress=lambda items: tqdm(items, desc="writing text", unit="batch"),
    )
    return evaluation, blocks
