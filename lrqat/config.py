"""The settings of a training run. Defaults live here and nowhere else; `tools/train.py` reads them.

Rates, warm-up and betas are those of the LR-QAT paper's experiments (10 % warm-up, linear decay,
beta2 0.95, no weight decay, gradients clipped to norm 1). Alpha is not: the paper's factor alpha/r
is 1/32, for 10,000 steps. On an 8-million-parameter model a factor of 1 moved 0.2 % of the integers
in 200 steps and a factor of 16 moved 2 %, with the better result (docs/results.md).
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from lrqat.downcast import DOWNCASTS
from lrqat.errors import UserError
from lrqat.range_init import RANGE_INITS

# Smallest value of each whole number; a sequence of one token has nothing to predict.
_LEAST = {
    "steps": 1,
    "batch_size": 1,
    "sequence_length": 2,
    "gradient_accumulation": 1,
    "rank": 1,
    "eval_windows": 1,
    "save_every": 0,
    "seed": 0,
}
DTYPES = ("auto", "float32", "bfloat16")


def _help(text: str, default: Any) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Every field but the first three has a default.

    Raises:
        UserError: a number that is out of range, or an unknown name, on construction.
    """

    model: str
    data: str
    output: str
    grid: str = _help("grid of the projections", "q4_0")
    eval_data: str | None = _help(
        "UTF-8 text for the perplexities; default: the start of --data is held out", None
    )
    steps: int = _help("optimiser steps", 500)
    batch_size: int = _help("sequences a step and device", 8)
    sequence_length: int = _help("tokens a sequence", 256)
    gradient_accumulation: int = _help("batches a step", 1)
    rank: int = _help("r: columns of A, rows of B", 32)
    alpha: float | None = _help("the update is (alpha/r) A B; default: alpha = 16 r", None)
    phi: str = _help(f"form of the frozen weights: {', '.join(DOWNCASTS)}", "fp32")
    range_init: str = _help(f"start scales: {', '.join(RANGE_INITS)}", "lp")
    learning_rate: float = _help("peak rate of A and B", 1e-3)
    scale_learning_rate: float = _help("peak rate of the scales", 1e-5)
    teacher: str = _help(
        "none: cross-entropy; self: KL to the model's own full precision; or a model to distil",
        "none",
    )
    keep: tuple[str, ...] = _help("regular expression of modules left in floating point", ())
    context: int = _help("tokens a window of the perplexities", 512)
    eval_windows: int = _help("windows of the perplexities at most", 40)
    save_every: int = _help("steps between resumable states; 0: a tenth of --steps", 0)
    seed: int = _help("of A, B and the order of the text", 0)
    dtype: str = _help("compute type; auto: float32 on CPU, bfloat16 elsewhere", "auto")
    device: str = _help("auto, cpu, or cuda", "auto")
    trust_remote_code: bool = _help("run Python code that the model brings", False)

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"{_flag(name)} {getattr(self, name)} must be at least {least}")
        for name in ("learning_rate", "scale_learning_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(
                    f"{_flag(name)} {getattr(self, name)} must be a number that is not negative"
                )
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise UserError(f"--alpha {self.alpha} must be a number above 0")
        for name, known in (("phi", DOWNCASTS), ("range_init", RANGE_INITS), ("dtype", DTYPES)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"{_flag(name)} {getattr(self, name)!r} is unknown; choose {', '.join(known)}"
                )

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimiser step sees on one device."""
        return self.batch_size * self.gradient_accumulation * self.sequence_length

    def to_json(self) -> dict[str, Any]:
        """All settings, for the checkpoint and for a resumed run to compare with."""
        return asdict(self) | {"keep": list(self.keep)}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
