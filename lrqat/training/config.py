"""The settings of a training run. Defaults live here and nowhere else; `lrqat train` reads them.

Warm-up and betas are those of the LR-QAT paper's experiments (10 % warm-up, linear decay, beta2
0.95, no weight decay, gradients clipped to norm 1). What differs is for runs of hundreds of steps
where the paper has 10,000, and comes from runs (docs/results.md): the factor alpha/r is 16 and not
1/32, since a factor of 1 moved 0.2 % of the integers in 200 steps; the rate of the scales is 1e-4
and not 1e-5; scales start from errors weighted by the importance of the inputs, and A and B from
what cancels most of the error of rounding (`lrqat.init.lora_init`), with a lower rate from there.
"""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

from lrqat.activations.grids import ACTIVATION_GRIDS, find_activation_grid, parse_setting
from lrqat.activations.ranges import RANGE_METHODS
from lrqat.errors import UserError
from lrqat.grids.grid import find_grid
from lrqat.init.lora_init import LORA_INITS
from lrqat.init.range_init import RANGE_INITS
from lrqat.layers.frozen import DOWNCASTS
from lrqat.layers.methods import METHODS
from lrqat.models.preparation import Settings
from lrqat.training.optimizers import OPTIMIZERS, refuse_unavailable

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
    "teacher_top_k": 1,
    "importance_tokens": 1,
}
SELF = "self"  # as --teacher: the model itself; as --data: text that the model writes
AUTO = "auto"
DTYPES = (AUTO, "float32", "bfloat16")


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
        "file of text for the perplexities; default: the start of --data is held out", None
    )
    steps: int = _help("optimiser steps", 500)
    batch_size: int = _help("sequences a step and device", 4)
    sequence_length: int = _help(
        "tokens a sequence; short ones leave late positions untrained", 512
    )
    gradient_accumulation: int = _help("batches a step", 1)
    rank: int = _help("r: columns of A, rows of B", 32)
    alpha: float | None = _help(
        "the update is (alpha/r) A B; default: 16 sqrt(32 r), which is 512 at rank 32", None
    )
    phi: str = _help(f"form of the frozen weights: {', '.join(DOWNCASTS)}", "fp32")
    range_init: str = _help(
        f"start scales: {', '.join(RANGE_INITS)}; auto: importance, or l2 with --streamed", AUTO
    )
    lora_init: str = _help(
        f"A and B at the start: {', '.join(LORA_INITS)}; auto: error, or random with --streamed",
        AUTO,
    )
    learning_rate: float | None = _help(
        "peak rate of A and B; default: "
        + ", ".join(f"{init.learning_rate:g} from {name}" for name, init in LORA_INITS.items()),
        None,
    )
    scale_learning_rate: float = _help("peak rate of the scales", 1e-4)
    weight_learning_rate: float = _help("peak rate of the weights of --method full", 1e-4)
    teacher: str = _help(
        "none: cross-entropy; self: KL to the model's own full precision; or a model to distil",
        "none",
    )
    method: str = _help(
        "; ".join(f"{name}: {method.summary}" for name, method in METHODS.items()), "lr-qat"
    )
    grid_for: tuple[str, ...] = _help(
        "another grid for the modules that match a regular expression, as PATTERN=GRID; "
        "also puts the output head or the embedding on a grid",
        (),
    )
    cross_entropy_weight: float = _help(
        "share of cross-entropy in the loss with a teacher, 0 to 1", 0.0
    )
    teacher_cache: str | None = _help(
        "folder for the teacher's most likely tokens; the teacher is then run once", None
    )
    teacher_top_k: int = _help("tokens a position kept in --teacher-cache", 64)
    imatrix: str | None = _help(
        "importance of input channels from a file of llama-imatrix (GGUF or .dat); "
        "default: measured on the training text",
        None,
    )
    importance_tokens: int = _help("tokens of training text that importance is measured on", 65536)
    optimizer: str = _help(f"optimiser: {', '.join(OPTIMIZERS)}", "adamw")
    gradient_checkpointing: bool = _help(
        "keep only the inputs of every block and compute the rest again in the backward pass", False
    )
    activations: str | None = _help(
        f"grid of the projections' inputs: {', '.join(ACTIVATION_GRIDS)}; default: not rounded",
        None,
    )
    kv_bits: int | None = _help("bits of keys and values, 4 or 8; default: not rounded", None)
    setting: str | None = _help(
        "weights-activations-cache in bits, as 4-8-8, instead of --activations and --kv-bits", None
    )
    activation_range: str = _help(
        f"how static ranges of activations are found: {', '.join(RANGE_METHODS)}", "mse"
    )
    learn_activation_ranges: bool = _help("train the scales of static ranges", False)
    streamed: bool = _help(
        "read, round and drop the weights one at a time; the model is never whole in memory", False
    )
    keep: tuple[str, ...] = _help("regular expression of modules left in floating point", ())
    context: int = _help("tokens a window of the perplexities", 512)
    eval_windows: int = _help("windows of the perplexities at most", 40)
    save_every: int = _help("steps between resumable states; 0: a tenth of --steps", 0)
    seed: int = _help("of A, B and the order of the text", 0)
    dtype: str = _help("compute type; auto: float32 on CPU, bfloat16 elsewhere", AUTO)
    device: str = _help("auto, cpu, or cuda", "auto")
    trust_remote_code: bool = _help("run Python code that the model brings", False)

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise UserError(f"{_flag(name)} {getattr(self, name)} must be at least {least}")
        self._choose_start()
        for name in ("learning_rate", "scale_learning_rate", "weight_learning_rate"):
            rate = getattr(self, name)
            if rate is not None and not 0 <= rate < math.inf:
                raise UserError(f"{_flag(name)} {rate} must be a number that is not negative")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise UserError(f"--alpha {self.alpha} must be a number above 0")
        if not 0 <= self.cross_entropy_weight <= 1:
            raise UserError(
                f"--cross-entropy-weight {self.cross_entropy_weight} must be between 0 and 1"
            )
        for name, known in (
            ("method", METHODS),
            ("phi", DOWNCASTS),
            ("range_init", RANGE_INITS),
            ("lora_init", LORA_INITS),
            ("dtype", DTYPES),
            ("activation_range", RANGE_METHODS),
        ):
            if getattr(self, name) not in known:
                raise UserError(
                    f"{_flag(name)} {getattr(self, name)!r} is unknown; choose {', '.join(known)}"
                )
        self._apply_setting()
        self._refuse_contradictions()
        refuse_unavailable(self.optimizer)
        self.grids_by_pattern()

    def _choose_start(self) -> None:
        """Put what is used into `lora_init`, `learning_rate` and `range_init`."""
        if self.lora_init == AUTO:
            object.__setattr__(self, "lora_init", "random" if self.streamed else "error")
        if self.learning_rate is None and self.lora_init in LORA_INITS:
            rate = LORA_INITS[self.lora_init].learning_rate
            object.__setattr__(self, "learning_rate", rate)
        if self.range_init == AUTO:
            # Importance is measured on a whole model, or read from a file.
            measured = not self.streamed or self.imatrix
            object.__setattr__(self, "range_init", "importance" if measured else "l2")

    def _apply_setting(self) -> None:
        """Put what `setting` stands for into `activations` and `kv_bits`."""
        if self.setting is None:
            return
        setting = parse_setting(self.setting)
        if self.activations or self.kv_bits:
            raise UserError("give --setting, or --activations and --kv-bits, not both")
        if find_grid(self.grid).bits != setting.weight_bits:
            raise UserError(
                f"--setting {self.setting} asks for {setting.weight_bits}-bit weights and --grid "
                f"{self.grid} has {find_grid(self.grid).bits}; make them agree"
            )
        object.__setattr__(self, "activations", setting.activations)
        object.__setattr__(self, "kv_bits", setting.kv_bits)

    def _refuse_contradictions(self) -> None:
        if self.data == SELF and not self.eval_data:
            raise UserError("--data self needs --eval-data: a text that the model did not write")
        if self.teacher_cache and self.teacher == "none":
            raise UserError("--teacher-cache needs a --teacher (self, or a model)")
        if self.activations:
            grid = find_activation_grid(self.activations)
            if self.learn_activation_ranges and not grid.static:
                raise UserError(
                    f"--learn-activation-ranges needs a static grid, and --activations "
                    f"{self.activations} measures its ranges as it goes; use int{grid.bits}-tensor"
                )
        if self.streamed and self.data == SELF:
            raise UserError("--streamed has no whole model, which --data self needs to write text")
        if self.streamed and RANGE_INITS[self.range_init].weighted and not self.imatrix:
            raise UserError(
                f"--streamed has no whole model to measure what --range-init {self.range_init} "
                "needs; give --imatrix, or --range-init l2"
            )
        if self.streamed and LORA_INITS[self.lora_init].directions:
            raise UserError(
                f"--streamed has no whole model whose inputs --lora-init {self.lora_init} could "
                "measure; use --lora-init random"
            )
        if self.kv_bits not in (None, 4, 8):
            raise UserError(f"--kv-bits {self.kv_bits} must be 4 or 8")
        if self.imatrix and not RANGE_INITS[self.range_init].weighted:
            raise UserError(
                f"--imatrix is not used by --range-init {self.range_init}; "
                "add --range-init importance"
            )

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimiser step sees on one device."""
        return self.batch_size * self.gradient_accumulation * self.sequence_length

    @property
    def low_rank_rate(self) -> float:
        """Peak rate of A and B."""
        assert self.learning_rate is not None  # put there when this was made
        return self.learning_rate

    def settings(self) -> Settings:
        """How weights are put on their grids."""
        return Settings(
            rank=self.rank,
            alpha=self.alpha,
            phi=self.phi,
            range_init=self.range_init,
            lora_init=self.lora_init,
            method=self.method,
            train_scales=self.scale_learning_rate > 0,
        )

    def grids_by_pattern(self) -> dict[str, str]:
        """`grid_for` as pattern -> grid name. Raises UserError for an entry without both."""
        pairs = [entry.rpartition("=") for entry in self.grid_for]
        for entry, (pattern, _, grid) in zip(self.grid_for, pairs, strict=True):
            if not pattern or not grid:
                raise UserError(f"--grid-for {entry!r} must be PATTERN=GRID, like down_proj=q6_k")
        return {pattern: grid for pattern, _, grid in pairs}

    def to_json(self) -> dict[str, Any]:
        """All settings, for the checkpoint and for a resumed run to compare with."""
        return asdict(self) | {"keep": list(self.keep), "grid_for": list(self.grid_for)}


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
