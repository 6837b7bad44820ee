"""The proof that an exported file computes what was trained, cheapest part first.

    L0  the file's own bytes: integers and scales equal the checkpoint's, every tensor, bit for bit
        (and, in GGUF, where the graph is not in the file, hyperparameters and vocabulary)
    L1  the graph: in float32, of the same dequantised weights, against PyTorch, over the first 256
        positions: no more than another order of summation explains; where activations are
        fake-quantized in the graph, both without that, and each rounding by itself, bit for bit
    L2  the runtime: perplexity and KL of the real file in the real runtime, on the same windows: no
        more than what it rounds on purpose explains

Bounds are measured on the model, see `lrqat.runtimes.bounds`; what each runtime rounds is in
`lrqat.runtimes.provers`. An unquantized tensor that the export was asked to round is rounded in
L2's reference too. What a file costs at ONNX Runtime's other accuracy levels can be measured beside
it; nothing is demanded of that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.format import format_of, load_format
from exporters.text_model import text_model
from lrqat.atomic_files import refuse_present
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import UserError, first_line
from lrqat.evaluation.kl_base import write_kl_base
from lrqat.evaluation.perplexity import (
    Comparison,
    LogitsFunction,
    Progress,
    Windows,
    compare,
    compare_all,
)
from lrqat.evaluation.text import encode, window_bos
from lrqat.models import hub
from lrqat.models.positions import learned_positions
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.bounds import RuntimeCheck, check_graph, reordered
from lrqat.runtimes.proof import Proof
from lrqat.runtimes.provers import PROVERS, Prover
from lrqat.runtimes.targets import Target, open_target

L1_WINDOWS = 4
# llama.cpp's rotary angles and PyTorch's drift apart with the position
# (lrqat/runtimes/llama_cpp/runtime.py says why): on 256 positions that is less than the noise of
# summation, on 512 it can exceed it.
L1_POSITIONS = 256
# What is rounded is held for all layers at once.
ROUNDED_POSITIONS = 64


def prove(
    checkpoint_path: str | Path,
    files: list[str],
    text: str,
    *,
    context: int = 512,
    limit: int | None = None,
    kl_base: Path | None = None,
    converter: str | None = None,
    accuracy_levels: Sequence[int] = (),
    progress: Callable[[str], Progress | None] = lambda what: None,
) -> list[Proof]:
    """Prove exported files against the fused checkpoint they came from.

    Args:
        checkpoint_path: folder of the fused checkpoint.
        files: .gguf files and ONNX folders.
        text: evaluation text.
        context: tokens per window.
        limit: windows at most; None: all.
        kl_base: a file to write the reference's predictions to, see `lrqat.evaluation.kl_base`.
        converter: llama.cpp's source tree, for files that its own converter laid out.
        accuracy_levels: of ONNX Runtime, to measure ONNX folders at too.
        progress: from what is measured to a wrapper of the iterable of windows.

    Returns:
        One proof per file, in order.

    Raises:
        UserError: a file of no format, no runtime for it, too short a text, or
            `accuracy_levels` and no file that has them.
        OutputError: `kl_base` exists, or cannot be written.
    """
    if kl_base:
        refuse_present([kl_base], overwrite=False)
    formats = [format_of(file) for file in files]
    if accuracy_levels and not any(PROVERS[name].at_level for name in formats):
        raise UserError("accuracy levels are ONNX Runtime's, and no file is an ONNX folder")
    reference = _Reference.of(Checkpoint.open(checkpoint_path), text, context, limit)
    if kl_base:
        shown = progress(f"writing {kl_base.name}")
        write_kl_base(kl_base, reference.logits, reference.windows, progress=shown)
    return [
        _prove(reference, file, name, converter, accuracy_levels, progress)
        for file, name in zip(files, formats, strict=True)
    ]


@dataclass(frozen=True)
class _Reference:
    """What files are compared with: the fake-quant model in PyTorch, and the text as it reads it.

    Attributes:
        checkpoint: its checkpoint.
        model: the model.
        logits: of it.
        text: the evaluation text.
        tokens: its ids.
        bos: id that starts every window, or None.
        windows: of the ids.
    """

    checkpoint: Checkpoint
    model: Any
    logits: LogitsFunction
    text: str
    tokens: list[int]
    bos: int | None
    windows: Windows

    @classmethod
    def of(cls, checkpoint: Checkpoint, text: str, context: int, limit: int | None) -> "_Reference":
        checkpoint = text_model(checkpoint)  # what every export holds
        tokenizer = hub.load_tokenizer(checkpoint.path)
        tokens, bos = encode(tokenizer, text), window_bos(tokenizer)
        model = load_reference(checkpoint)
        ending = learned_positions(model)
        windows = Windows.cut(tokens, context, bos, limit, positions=ending)
        return cls(checkpoint, model, torch_logits(model), text, tokens, bos, windows)


def _prove(
    reference: _Reference,
    file: str,
    format_name: str,
    converter: str | None,
    accuracy_levels: Sequence[int],
    progress: Callable[[str], Progress | None],
) -> Proof:
    """The proof of one file; the arguments are those of `prove`."""
    path, checkpoint, windows = Path(file), reference.checkpoint, reference.windows
    prover = PROVERS[format_name]
    compared = load_format(format_name).verify(path, checkpoint)
    with prover.graph(path, checkpoint, windows.context, converter) as graph:
        _refuse_other_vocabulary(path, reference.logits, graph, windows)
        with prover.as_graph(reference.model):
            short = windows.tokens[:L1_WINDOWS, :L1_POSITIONS]
            graph_check = check_graph(reference.logits, graph, list(short))
    with (
        open_target(file, context=windows.context) as target,
        prover.as_stored(reference.model, path, checkpoint),
    ):
        _refuse_other_vocabulary(path, reference.logits, target.logits, windows)
        execution = _check_runtime(reference, path, prover, target, progress)
        same_tokens = target.encode(reference.text) == reference.tokens
        return Proof(
            file=file,
            runtime=target.runtime,
            bytes=target.bytes,
            compared=compared,
            same_tokens=same_tokens and target.bos == reference.bos,
            graph=graph_check,
            execution=execution,
            roundings=prover.roundings(path, checkpoint, windows.tokens[0, :ROUNDED_POSITIONS]),
            at_levels=_at_levels(reference, path, prover, accuracy_levels, progress),
        )


def _check_runtime(
    reference: _Reference,
    path: Path,
    prover: Prover,
    target: Target,
    progress: Callable[[str], Progress | None],
) -> RuntimeCheck:
    """The runtime and its simulation, against the reference."""
    rounds = False

    def rounded(tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        nonlocal rounds
        with prover.as_runtime(reference.model, path, reference.checkpoint) as rounds:
            return reference.logits(tokens)

    shown = progress(target.runtime)
    targets = [target.logits, reordered(rounded)]
    found = compare_all(reference.logits, targets, reference.windows, shown)
    return RuntimeCheck(found[0], found[1], rounds)


def _at_levels(
    reference: _Reference,
    path: Path,
    prover: Prover,
    levels: Sequence[int],
    progress: Callable[[str], Progress | None],
) -> dict[int, Comparison]:
    """What the file computes at other accuracy levels; nothing where its runtime has none."""
    found: dict[int, Comparison] = {}
    if prover.at_level:
        for level in levels:
            shown = progress(f"level {level}")
            with prover.at_level(path, level) as logits:
                found[level] = compare(reference.logits, logits, reference.windows, shown)
    return found


def _refuse_other_vocabulary(
    path: Path, reference: LogitsFunction, other: LogitsFunction, windows: Windows
) -> None:
    tokens = windows.tokens[0, :2]
    try:
        same, reason = reference(tokens).shape == other(tokens).shape, ""
    except Exception as error:  # a runtime's own, on an id that its vocabulary does not have
        same, reason = False, f", or cannot run: {first_line(error)}"
    if not same:
        raise UserError(
            f"{path} has another vocabulary than the checkpoint and is not its export{reason}"
        )
