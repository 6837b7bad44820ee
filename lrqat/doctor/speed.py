"""Tokens a second of a file on this machine, in the runtime that reads it."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from exporters.format import format_of
from lrqat.errors import RuntimeUnavailableError

PROMPT, GENERATED, ROUNDS = 64, 16, 3
# A kernel that is this much slower than Q8_0's, which every processor has one for, is plain C.
PLAIN_C = 0.4
_YARDSTICK = "q8_0"


@dataclass(frozen=True)
class Measured:
    """The median of some rounds.

    Attributes:
        runtime: what ran it.
        threads: it computed on.
        prompt: tokens a second of a prompt of 64.
        generation: tokens a second after it.
    """

    runtime: str
    threads: int
    prompt: float
    generation: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def measure(path: str, threads: int) -> Measured:
    """Run an exported file: a prompt of 64 tokens, then 16 one by one, three times.

    Raises:
        UserError: it cannot be loaded, or its runtime is not installed.
    """
    return MEASURERS[format_of(path)](path, threads)


def _in_llama_cpp(path: str, threads: int) -> Measured:
    from lrqat.runtimes.llama_cpp.runtime import LlamaCpp

    with LlamaCpp.open(path, n_ctx=PROMPT + GENERATED, n_threads=threads) as llama:
        tokens = [token % llama.n_vocab for token in range(PROMPT)]
        llama.feed(tokens[:1], 0)  # touches every weight, so that none is read from the disk later

        def generate() -> None:
            for position in range(PROMPT, PROMPT + GENERATED):
                llama.feed(tokens[:1], position)

        return _timed("llama.cpp", threads, lambda: llama.feed(tokens, 0), generate)


def _in_onnx_runtime(path: str, threads: int) -> Measured:
    from lrqat.runtimes.onnx_runtime.perplexity import feeds_of
    from lrqat.runtimes.onnx_runtime.session import OnnxRuntime

    with OnnxRuntime.open(path, threads=threads) as opened:
        session = opened.session
        prompt = feeds_of(session, np.arange(PROMPT))
        steps = [feeds_of(session, np.zeros(1, np.int64), PROMPT + n) for n in range(GENERATED)]
        session.run(["logits"], steps[0])

        def generate() -> None:
            for feeds in steps:
                session.run(["logits"], feeds)

        return _timed("ONNX Runtime", threads, lambda: session.run(["logits"], prompt), generate)


MEASURERS: dict[str, Callable[[str, int], Measured]] = {
    "gguf": _in_llama_cpp,
    "onnx": _in_onnx_runtime,
    "onnx-genai": _in_onnx_runtime,
}


def kernels(types: list[str]) -> dict[str, float]:
    """Weights a second of llama.cpp's products with some types, and with Q8_0, on one thread.

    A type that llama.cpp has no product of is left out.

    Raises:
        RuntimeUnavailableError: llama.cpp is not installed.
    """
    from lrqat.runtimes.llama_cpp.ffi import load_library
    from lrqat.runtimes.llama_cpp.kernels import weights_per_second

    load_library()
    found = {}
    for name in dict.fromkeys((*types, _YARDSTICK)):
        try:
            found[name] = weights_per_second(name)
        except RuntimeUnavailableError:
            continue
    return found


def is_plain_c(name: str, speeds: dict[str, float]) -> bool:
    """Whether what `kernels` found of a type is no kernel made for this processor."""
    return speeds[name] < PLAIN_C * speeds[_YARDSTICK]


def _timed(
    runtime: str, threads: int, prompt: Callable[[], Any], generate: Callable[[], Any]
) -> Measured:
    taken = [(_seconds(prompt), _seconds(generate)) for _ in range(ROUNDS)]
    first, then = (float(np.median(each)) for each in zip(*taken, strict=True))
    return Measured(runtime, threads, PROMPT / first, GENERATED / then)


def _seconds(work: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
