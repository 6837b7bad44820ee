"""What was found about one exported file: the levels of the proof, and what each failure means."""

from dataclasses import dataclass, field
from typing import Any

from lrqat.evaluation.perplexity import Comparison
from lrqat.runtimes.bounds import GraphCheck, RuntimeCheck


@dataclass(frozen=True)
class Proof:
    """What was found about one file.

    Attributes:
        file: its path as given.
        runtime: what ran it.
        bytes: size of the model's files.
        compared: weights that differ in L0, by tensor: every tensor that was compared.
        same_tokens: whether the runtime's tokenizer gives the reference's ids for the text.
        graph: L1.
        execution: L2.
        roundings: values rounded otherwise than PyTorch rounds them, by layer or part of the cache.
        at_levels: as `comparison`, at accuracy levels that were asked for.
    """

    file: str
    runtime: str
    bytes: int
    compared: dict[str, int]
    same_tokens: bool
    graph: GraphCheck
    execution: RuntimeCheck
    roundings: dict[str, int] = field(default_factory=dict)
    at_levels: dict[int, Comparison] = field(default_factory=dict)

    @property
    def logit_difference(self) -> float:
        """Largest |d logit| of L1."""
        return self.graph.found.largest

    @property
    def comparison(self) -> Comparison:
        """The runtime against the reference."""
        return self.execution.found

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
            "L1": self.graph.holds and not any(self.roundings.values()),
            "L2": self.same_tokens and self.execution.holds,
        }

    @property
    def passed(self) -> bool:
        """Whether all levels hold."""
        return all(self.verdicts.values())

    @property
    def failures(self) -> list[str]:
        """What each level that fails has found, a sentence each."""
        wrong = sum(self.mismatches.values())
        differing = sum(count > 0 for count in self.roundings.values())
        return [
            f"{level}: {reason}"
            for level, fails, reason in (
                ("L0", wrong, f"{wrong:,} weights in {len(self.mismatches)} tensors differ"),
                ("L1", not self.graph.holds, self.graph.reason),
                ("L1", differing, f"{differing} roundings of activations differ from training's"),
                ("L2", not self.same_tokens, "the runtime tokenises this text differently"),
                ("L2", not self.execution.holds, self.execution.reason),
            )
            if fails
        ]

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
            "l1": self.graph.to_json()
            | {
                "roundings": len(self.roundings),
                "rounded_otherwise": sum(self.roundings.values()),
            },
            "l2": _plain(self.comparison)
            | self.execution.to_json()
            | {"same_tokens": self.same_tokens},
            "accuracy_levels": {str(n): _plain(found) for n, found in self.at_levels.items()},
            "verdicts": self.verdicts,
            "failures": self.failures,
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
