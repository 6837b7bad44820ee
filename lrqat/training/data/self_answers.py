"""Answers of the model itself to a user's prompts: `--data self:prompts.jsonl`.

What is trained on is then what the model says where it is used, by its own chat template. Answers
are drawn from the full softmax (temperature 1, no cut-off), so that they have the model's own
distribution, in batches with a cache, by transformers' `generate`.

They are written as rows of `messages` into the run's folder, under a name that says what they are
of; a run that is continued, or begun again with the same settings, reads that file, and any other
run can be given it as --data.
"""

import hashlib
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from lrqat.atomic_files import replaced_file
from lrqat.checkpoint.manifest import sha256_of
from lrqat.errors import DataError
from lrqat.evaluation.perplexity import Progress
from lrqat.layers.modes import evaluating
from lrqat.training.data.answer_spans import ANSWERING, Messages
from lrqat.training.data.chats import ChatTokens, conversation_of
from lrqat.training.data.rows import Row, read_rows

_FORMS = (("messages",), ("conversations",), ("prompt",), ("instruction",), ("text",))
_SHORTEST = 8  # tokens that there has to be room for


@dataclass(frozen=True)
class Writing:
    """How answers are written.

    Attributes:
        length: tokens of a chat at most, the prompt included.
        tokens: of all chats; writing ends when there are as many, or no prompts.
        batch_size: answers written side by side.
        seed: of what is drawn.
    """

    length: int
    tokens: int
    batch_size: int
    seed: int


def answers_file(folder: Path, prompts: Path, model: str, writing: Writing) -> Path:
    """Where answers lie in a run's folder: another name for other prompts, models or settings."""
    said = f"{sha256_of(prompts)} {model} {writing}"
    return folder / f"answers-{hashlib.sha256(said.encode()).hexdigest()[:12]}.jsonl"


def write_answers(
    model: Any,
    tokenizer: Any,
    prompts: Path,
    path: Path,
    writing: Writing,
    progress: Progress | None = None,
) -> int:
    """Let `model` answer, and write the chats as a file of rows.

    Args:
        model: the causal LM in full precision; its mode is left as it was.
        tokenizer: its tokenizer, with a chat template.
        prompts: rows of `messages`, `conversations`, `prompt`, `instruction` (and `input`) or
            `text`. Answers that a chat ends with are left out, and written anew.
        path: the file to write; its folder must be there.
        writing: how much, and how.
        progress: wraps the iterable of batches.

    Returns:
        How many chats were written.

    Raises:
        DataError: no prompt, none that leaves room for an answer, or no chat template.
        OutputError: the file cannot be written.
    """
    written = tokens = 0
    device = next(model.parameters()).device
    devices = [device] if device.type == "cuda" else []
    with (
        replaced_file(path, overwrite=True) as staged,
        staged.open("w", encoding="utf-8", newline="\n") as stream,
        ChatTokens(tokenizer) as chats,
        torch.random.fork_rng(devices=devices),
        evaluating(model),
    ):
        torch.manual_seed(writing.seed)
        asked = _prompts(prompts, chats, writing.length)
        found = _batched(asked, writing.batch_size)
        for batch in progress(found) if progress else found:
            answers = _answers(model, tokenizer, [ids for _, ids in batch], writing.length)
            for (messages, ids), answer in zip(batch, answers, strict=True):
                text = tokenizer.decode(answer, skip_special_tokens=True).strip()
                if text:
                    row = {"messages": [*messages, {"role": ANSWERING, "content": text}]}
                    stream.write(json.dumps(row, ensure_ascii=False) + "\n")
                    written, tokens = written + 1, tokens + len(ids) + len(answer)
            if tokens >= writing.tokens:
                break
        if not written:
            raise DataError(
                f"the model has no answer to any prompt of {prompts}; give prompts that it can "
                f"answer within {writing.length} tokens, or a longer --sequence-length"
            )
    return written


def _batched(items: Iterator[Any], size: int) -> Iterator[tuple[Any, ...]]:
    """As Python 3.12's `itertools.batched`."""
    while batch := tuple(itertools.islice(items, size)):
        yield batch


def _prompts(
    source: Path, chats: ChatTokens, length: int
) -> Iterator[tuple[Messages, Sequence[int]]]:
    """Messages that want an answer, and their tokens; those that leave no room are passed over."""
    for number, row in enumerate(read_rows(str(source)), 1):
        where = f"row {number} of {source}"
        messages = _asking(row, where)
        if messages:
            ids = chats.chat(messages, row.get("tools"), where, prompted=True).ids
            if len(ids) + _SHORTEST <= length:
                yield messages, ids


def _asking(row: Row, where: str) -> Messages:
    """The messages of a row up to the last that is no answer; empty if there is none."""
    form = next((form for form in _FORMS if row.get(form[0]) is not None), None)
    if form is None:
        names = ", ".join(name for (name,) in _FORMS)
        raise DataError(f"{where} has none of the columns {names}; name the one of the prompts so")
    if form[0] in ("messages", "conversations"):
        messages = conversation_of(row, form, where).messages
    else:
        texts = [row[form[0]], row.get("input") if form[0] == "instruction" else None]
        said = [text for text in texts if text]
        if not all(isinstance(text, str) for text in said):
            raise DataError(f"`{form[0]}` of {where} is no text; put it in quotes")
        messages = [{"role": "user", "content": "\n\n".join(said)}] if said else []
    while messages and messages[-1].get("role") == ANSWERING:
        messages = messages[:-1]
    return messages


@torch.no_grad()
def _answers(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], length: int
) -> list[list[int]]:
    """The tokens of each answer, its end included; together with its prompt at most `length`."""
    ends = _ends(model, tokenizer)
    pad = tokenizer.pad_token_id
    pad = (ends[0] if ends else 0) if pad is None else pad
    longest = max(map(len, prompts))
    device = next(model.parameters()).device
    ids = torch.full((len(prompts), longest), pad, device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):  # padded on the left, as generate wants it
        ids[row, longest - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, longest - len(prompt) :] = 1
    settings = GenerationConfig(
        max_new_tokens=length - min(map(len, prompts)),
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        eos_token_id=ends or None,
        pad_token_id=pad,
        use_cache=True,
    )
    made: Tensor = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings)
    rows = zip(made[:, longest:].tolist(), prompts, strict=True)
    return [_until_end(tokens[: length - len(prompt)], ends) for tokens, prompt in rows]


def _ends(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the model's, and the tokenizer's."""
    said = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = said if isinstance(said, list) else [said]
    found = [each for each in [*several, tokenizer.eos_token_id] if isinstance(each, int)]
    return list(dict.fromkeys(found))


def _until_end(tokens: list[int], ends: list[int]) -> list[int]:
    end = next((i + 1 for i, token in enumerate(tokens) if token in ends), len(tokens))
    return tokens[:end]
