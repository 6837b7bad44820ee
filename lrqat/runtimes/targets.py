"""Anything that can be evaluated, opened as one kind of thing: tokens in, logits out.

A target is a `.gguf` file (llama.cpp), an ONNX folder (ONNX Runtime), a fused checkpoint (the
fake-quant reference in PyTorch), or a Hugging Face model (PyTorch, float32). What a path is,
`exporters.format` says; `OPENERS` has how each format is run.
"""

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exporters.format import CHECKPOINT, FORMATS, load_format, recognise
from lrqat.atomic_files import is_present
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import UserError
from lrqat.evaluation.perplexity import LogitsFunction, Perplexity, Progress, Windows, perplexity
from lrqat.evaluation.text import encode, window_bos
from lrqat.models import hub
from lrqat.models.positions import learned_positions, positions_of_folder, trained_positions
from lrqat.models.reference import load_reference, torch_logits
from lrqat.models.stored_model import open_model


@dataclass(frozen=True)
class Target:
    """An opened model.

    Attributes:
        runtime: what runs it, for people and for the JSON.
        logits: tokens int64 (n,) to logits float32 (n, vocabulary), with an empty cache each time.
        encode: a whole text to token ids, by the target's own tokenizer.
        bos: id that starts every window, or None.
        bytes: size of the model's files, without tokenizer and configuration.
        generate: (prompt, tokens at most) to its continuation, always the most probable token.
        positions: how many it has learned, past which it cannot be run; None: no such end.
        trained: how many it was trained for; None if it does not say.
    """

    runtime: str
    logits: LogitsFunction
    encode: Callable[[str], list[int]]
    bos: int | None
    bytes: int
    generate: Callable[[str, int], str]
    positions: int | None = None
    trained: int | None = None


@contextmanager
def open_target(path: str, *, context: int) -> Iterator[Target]:
    """Open `path`, and close it at the end of the block.

    Args:
        path: file, folder or hub id.
        context: tokens of the longest window that will be asked for.

    Raises:
        UserError: nothing there that can be run, or its runtime is not installed.
    """
    name = recognise(path)
    if name in FORMATS:
        load_format(name)  # says what is missing, if anything is
    elif name is None and Path(path).exists() and not (Path(path) / "config.json").is_file():
        raise UserError(
            f"nothing to evaluate at {path}: give a Hugging Face model, a fused checkpoint, a "
            ".gguf file, or an ONNX folder"
        )
    opener = _open_hugging_face if name is None else OPENERS[name]
    with opener(path, context) as target:
        yield target


def evaluate(
    path: str,
    text: str,
    *,
    context: int = 512,
    limit: int | None = None,
    progress: Progress | None = None,
) -> tuple[Target, Perplexity]:
    """Perplexity of any target on a text, by llama-perplexity's rule.

    Args:
        path: see `open_target`.
        text: the evaluation text.
        context: tokens per window.
        limit: windows at most; None: all.
        progress: wraps the iterable of windows.

    Raises:
        UserError: nothing to run, no runtime, a text shorter than two windows, or a context past
            the model's learned positions.
    """
    with open_target(path, context=context) as target:
        tokens = target.encode(text)
        windows = Windows.cut(tokens, context, target.bos, limit, positions=target.positions)
        return target, perplexity(target.logits, windows, progress)


def continuation(path: str, prompt: str, count: int, *, context: int = 512) -> str:
    """What any target writes after `prompt`, greedily: `count` tokens at most.

    `context` must hold both, where the runtime wants to know beforehand.

    Raises:
        UserError: nothing to run, no runtime, or one that cannot generate from it.
    """
    with open_target(path, context=context) as target:
        return target.generate(prompt, count)


def model_bytes(folder: Path, pattern: str) -> int:
    """Total size of the files of `folder` that match `pattern`."""
    return sum(file.stat().st_size for file in folder.glob(pattern))


@contextmanager
def _open_gguf(path: str, context: int) -> Iterator[Target]:
    from exporters import gguf
    from lrqat.runtimes.llama_cpp.runtime import LlamaCpp

    if not is_present(Path(path)):
        raise UserError(f"no GGUF file at {path}; write one with `lrqat export --format gguf`")
    with LlamaCpp.open(path, n_ctx=context, n_threads=os.cpu_count() or 1) as llama:
        yield Target(
            runtime="llama.cpp",
            logits=llama.logits,
            encode=lambda text: llama.tokenize(text, add_special=True),
            bos=llama.bos if llama.add_bos else None,
            bytes=sum(file.stat().st_size for file in gguf.model_files(Path(path))),
            generate=llama.generate,
            positions=llama.n_ctx,  # as many as were asked for, unless the model ends before
            trained=llama.n_ctx_train,
        )


@contextmanager
def _open_onnx(path: str, context: int) -> Iterator[Target]:
    from lrqat.runtimes.onnx_runtime.session import OnnxRuntime

    tokenizer = hub.load_tokenizer(path)
    learned, trained = positions_of_folder(Path(path))

    with OnnxRuntime.open(path) as session:

        def generate(prompt: str, count: int) -> str:
            from lrqat.runtimes.genai import generate as genai

            if (Path(path) / "genai_config.json").is_file():
                return genai(path, prompt, count)
            return _step_by_step(session.logits, tokenizer, learned, prompt, count)

        yield Target(
            runtime="ONNX Runtime",
            logits=session.logits,
            encode=lambda text: encode(tokenizer, text),
            bos=window_bos(tokenizer),
            bytes=model_bytes(Path(path), "model.onnx*"),
            generate=generate,
            positions=learned,
            trained=trained,
        )


@contextmanager
def _open_fused(path: str, context: int) -> Iterator[Target]:
    checkpoint = Checkpoint.open(path)
    tokenizer = hub.load_tokenizer(path)
    model = load_reference(checkpoint)
    yield Target(
        runtime="PyTorch fake-quant",
        logits=torch_logits(model),
        encode=lambda text: encode(tokenizer, text),
        bos=window_bos(tokenizer),
        bytes=model_bytes(Path(path), "*.safetensors"),
        generate=partial(_greedy, model, tokenizer),
        positions=learned_positions(model),
        trained=trained_positions(model.config),
    )


@contextmanager
def _open_hugging_face(path: str, context: int) -> Iterator[Target]:
    for note in open_model(path).notes:
        warnings.warn(note, stacklevel=2)
    model = hub.load_model(path, dtype=torch.float32)
    tokenizer = hub.load_tokenizer(path)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    yield Target(
        runtime="PyTorch",
        logits=torch_logits(model),
        encode=lambda text: encode(tokenizer, text),
        bos=window_bos(tokenizer),
        bytes=model_bytes(Path(path), "*.safetensors") or size,
        generate=partial(_greedy, model, tokenizer),
        positions=learned_positions(model),
        trained=trained_positions(model.config),
    )


def _step_by_step(
    logits: LogitsFunction, tokenizer: Any, positions: int | None, prompt: str, count: int
) -> str:
    """The continuation of a model that GenAI does not run, computed anew for every token."""
    ids = encode(tokenizer, prompt)
    count = _fitting(count, len(ids), positions)
    made: list[int] = []
    while len(made) < count:
        token = int(logits(np.array([*ids, *made]))[-1].argmax())
        if token == tokenizer.eos_token_id:
            break
        made.append(token)
    return str(tokenizer.decode(made, skip_special_tokens=True))


def _greedy(model: Any, tokenizer: Any, prompt: str, count: int) -> str:
    """The continuation by transformers' own generation."""
    ids = torch.tensor([encode(tokenizer, prompt)])
    made = model.generate(
        ids.to(model.device),
        max_new_tokens=_fitting(count, ids.shape[1], learned_positions(model)),
        do_sample=False,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=0,
    )
    return str(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))


def _fitting(count: int, prompt: int, positions: int | None) -> int:
    """`count` new tokens, or those that a model can make after `prompt` tokens."""
    if positions is None:
        return count
    if prompt > positions:
        raise UserError(
            f"the prompt has {prompt} tokens, more than the {positions} positions that the model "
            "has learned; give a shorter one"
        )
    return min(count, positions - prompt + 1)


# By the names that `recognise` gives.
OPENERS: dict[str, Callable[[str, int], AbstractContextManager[Target]]] = {
    "gguf": _open_gguf,
    "onnx": _open_onnx,
    "onnx-genai": _open_onnx,
    CHECKPOINT: _open_fused,
}
