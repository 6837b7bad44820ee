"""The table that the demonstration ends with: bytes, distance from the base, and an answer each."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lrqat.evaluation.text import EvaluationText
from lrqat.models import hub
from lrqat.progress import tqdm
from lrqat.runtimes.divergence import measure_divergence
from lrqat.runtimes.llama_cpp.runtime import LlamaCpp
from lrqat.runtimes.targets import model_bytes

_ANSWER_TOKENS = 60


@dataclass(frozen=True)
class Row:
    """One model of the table.

    Attributes:
        name: for people.
        bytes: of its weights.
        perplexity: on the held-out text, in its own runtime.
        kl: mean KL from the base, nats a token; None for the base.
        same_top: share of tokens where it and the base put the same one first; likewise.
        answer: what it says to the question.
    """

    name: str
    bytes: int
    perplexity: float
    kl: float | None
    same_top: float | None
    answer: str


def compare_files(
    base: Path, files: dict[str, Path], held_out: Path, question: str, *, context: int, windows: int
) -> Iterator[Row]:
    """Rows of the base, in PyTorch, and of GGUF files by name, in llama.cpp.

    Args:
        base: a model in Hugging Face's form.
        files: made from it.
        held_out: the text.
        question: what all are asked.
        context: tokens a window.
        windows: at most.
    """
    text, first = EvaluationText.read(held_out).text, True
    for name, path in files.items():
        bar = partial(tqdm, desc=name, unit="window")
        found = measure_divergence(
            str(path), str(base), text, context=context, limit=windows, progress=bar
        ).comparison
        if first:
            nbytes, said = model_bytes(base, "*.safetensors"), _torch_answer(base, question)
            yield Row("base", nbytes, found.reference.perplexity, None, None, said)
            first = False
        size, said = path.stat().st_size, _llama_cpp_answer(path, base, question)
        yield Row(name, size, found.target.perplexity, found.kl, found.same_top, said)


def _prompt(tokenizer: Any, question: str) -> list[int]:
    """A message by the model's own template; without one, the beginning of a text."""
    if not tokenizer.chat_template:
        return list(tokenizer(question)["input_ids"])
    messages = [{"role": "user", "content": question}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return list(ids)


def _torch_answer(base: Path, question: str) -> str:
    tokenizer = hub.load_tokenizer(str(base))
    model = hub.load_model(str(base), dtype=torch.float32)
    ids = torch.tensor([_prompt(tokenizer, question)])
    made = model.generate(ids, max_new_tokens=_ANSWER_TOKENS, do_sample=False, pad_token_id=0)
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def _llama_cpp_answer(path: Path, base: Path, question: str) -> str:
    ids = _prompt(hub.load_tokenizer(str(base)), question)
    with LlamaCpp.open(path, n_ctx=len(ids) + _ANSWER_TOKENS, n_threads=1) as llama:
        return llama.generate_after(ids, _ANSWER_TOKENS)
