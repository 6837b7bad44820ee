"""The proof that an exported file computes what was trained, cheapest part first.

    L0  the file's own bytes: integers and scales equal the checkpoint's, every tensor, bit for bit
        (and, in GGUF, where the graph is not in the file, hyperparameters and vocabulary)
    L1  the graph: in float32, of the same dequantised weights, against PyTorch, |d logit| < 1e-4
        over the first 256 positions; where activations are fake-quantized in the graph, both
        without that, and each rounding by itself, bit for bit
    L2  the runtime: perplexity and KL of the real file in the real runtime, on the same windows

The bounds depend on the runtime, and `lrqat.runtimes.provers` says what they are and why. An
unquantized tensor that the export was asked to round is rounded in L2's reference too. What a file
costs at ONNX Runtime's other accuracy levels can be measured beside it; nothing is demanded of
that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from exporters.format import format_of, load_format
from lrqat.atomic_files import refuse_existing
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import UserError, first_line
from lrqat.evaluation.kl_base import write_kl_base
from lrqat.evaluation.perplexity import Comparison, LogitsFunction, Progress, Windows, compare
from lrqat.evaluation.text import encode, window_bos
from lrqat.models import hub
from lrqat.models.positions import learned_positions
from lrqat.models.reference import load_reference, torch_logits
from lrqat.runtimes.provers import L1_BOUND, PROVERS, Prover, Tolerance
from lrqat.runtimes.targets import open_target

L1_WINDOWS = 4
# llama.cpp's rotary angles and PyTorch's drift apart with the position
# (lrqat/runtimes/llama_cpp/runtime.py says why): on 256 positions that is a third of the bound, on
# 512 it can exceed it.
L1_POSITIONS = 256
# What is rounded is held for all layers at once.
ROUNDED_POSITIONS = 64


@dataclass(frozen=True)
class Proof:
    """What was found about one file.

    Attributes:
        file: its path as given.
        runtime: what ran it.
        bytes: size of the model's files.
        compared: weights that differ in L0, by tensor: every tensor that was compared.
        same_tokens: whether the runtime's tokenizer gives the reference's ids for the text.
        logit_difference: largest |d logit| of L1.
        comparison: L2.
        tolerance: bounds of L2.
        logit_bound: bound of L1.
        roundings: values rounded otherwise than PyTorch rounds them, by layer or part of the cache.
        at_levels: as `comparison`, at accuracy levels that were asked for.
    """

    file: str
    runtime: str
    bytes: int
    compared: dict[str, int]
    same_tokens: bool
    logit_difference: float
    comparison: Comparison
    tolerance: Tolerance
    logit_bound: float = L1_BOUND
    roundings: dict[str, int] = field(default_factory=dict)
    at_levels: dict[int, Comparison] = field(default_factory=dict)

    @property
    def tensors(self) -> int:
        """Tensors that were compared in L0."""
        return len(self.compared)

    @property
    def mismatches(self) -> dict[str, int]:
        """Weights that differ in L0, by tensor; empty is a pass."""
        return {name: count for name, count in self.compared.items() if count}

    @property
    def verdicts(self) -> dict[str, bool]:
        """Pass or fail of each level; tokens count as part of L2."""
        return {
            "L0": not self.mismatches,
            "L1": self.logit_difference < self.logit_bound and not any(self.roundings.values()),
            "L2": self.same_tokens and self.tolerance.holds(self.comparison),
        }

    @property
    def passed(self) -> bool:
        """Whether all levels hold."""
        return all(self.verdicts.values())

    def to_json(self) -> dict[str, Any]:
        """The proof for machines."""
        return {
            "file": self.file,
            "runtime": self.runtime,
            "bytes": self.bytes,
            "l0": {
                "tensors": self.tensors,
                "mismatches": sum(self.mismatches.values()),
                "by_tensor": self.mismatches,
            },
            "l1": {
                "max_logit_difference": self.logit_difference,
                "roundings": len(self.roundings),
                "rounded_otherwise": sum(self.roundings.values()),
            },
            "l2": _plain(self.comparison) | {"same_tokens": self.same_tokens},
            "accuracy_levels": {str(n): _plain(found) for n, found in self.at_levels.items()},
            "verdicts": self.verdicts,
            "passed": self.passed,
        }


def _plain(comparison: Comparison) -> dict[str, Any]:
    return {
        "perplexity": comparison.target.perplexity,
        "standard_error": comparison.target.standard_error,
        "reference_perplexity": comparison.reference.perplexity,
        "relative_difference": comparison.relative_difference,
        "standard_errors_apart": comparison.standard_errors,
        "kl": comparison.kl,
        "same_top": comparison.same_top,
        "tokens": comparison.target.tokens,
    }


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
        refuse_existing(kl_base, overwrite=False)
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
        with prover.as_graph(reference.model) as bound:
            difference = _largest_difference(reference.logits, graph, windows)
    with (
        open_target(file, context=windows.context) as target,
        prover.as_stored(reference.model, path, checkpoint),
    ):
        _refuse_other_vocabulary(path, reference.logits, target.logits, windows)
        comparison = compare(reference.logits, target.logits, windows, progress(target.runtime))
        same_tokens = target.encode(reference.text) == reference.tokens
        return Proof(
            file=file,
            runtime=target.runtime,
            bytes=target.bytes,
            compared=compared,
            same_tokens=same_tokens and target.bos == reference.bos,
            logit_difference=difference,
            comparison=comparison,
            tolerance=prover.bounds(checkpoint),
            logit_bound=bound,
            roundings=prover.roundings(path, checkpoint, windows.tokens[0, :ROUNDED_POSITIONS]),
            at_levels=_at_levels(reference, path, prover, accuracy_levels, progress),
        )


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


def _largest_difference(
    reference: LogitsFunction, graph: LogitsFunction, windows: Windows
) -> float:
    tokens = windows.tokens[:L1_WINDOWS, :L1_POSITIONS]
    differences = (np.abs(reference(window) - graph(window)).max() for window in tokens)
    # A NaN anywhere must fail the comparison with the bound, and max() would hide it.
    return float(np.max(np.fromiter(differences, np.float64)))
