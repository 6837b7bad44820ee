"""The settings of a training run by what they are about; `lrqat.training.config` joins the groups.

How weights are put on their grids is a group of its own, `lrqat.models.preparation_settings`.
"""

from dataclasses import dataclass
from typing import Any

from lrqat.activations import table
from lrqat.byte_sizes import parse_size
from lrqat.errors import UserError
from lrqat.grids.backends import CHOICES
from lrqat.grids.misfits import MISFIT_CHOICES, NEXT
from lrqat.init.starts import LORA_INITS
from lrqat.settings import AUTO, Group, above, at_least, between, flag, one_of, option
from lrqat.training.optimizers import OPTIMIZERS, refuse_unavailable

SELF = "self"  # as --teacher: the model itself
NONE = "none"  # as --teacher
SCALE_RATE = 1e-2
EMBEDDING_AND_HEAD = "q8_0"  # their grid; costs next to nothing, and halves what F16 would take


class AfterBlocks:
    """Rates after blocks: all is near where it belongs, and higher ones first lead away from there.

    Least so on 2 bits, where there is most left to learn.
    """

    LOW_RANK, SCALE, SCALE_OF_2_BITS = 5e-4, 7e-4, 2e-3


@dataclass(frozen=True, kw_only=True)
class GridSettings(Group):
    """Which weights go on which grid."""

    title = "grid"

    grid: str = option("grid of the projections", "q4_0")
    recipe: str | None = option(
        "grids by a recipe: a file of YAML, or the types of llama-quantize's Q4_K_M, Q3_K_S, "
        "Q2_K ...; weights that it does not name go on --grid",
        None,
    )
    target_size: str | None = option(
        "bytes of the GGUF file, as 70MB: every weight gets the grid with which the KL of all is "
        "least within them",
        None,
    )
    target_bits: float | None = option(
        "the same by bits per weight of the whole file, embedding and head included",
        None,
        above(0),
    )
    for_: str | None = option(
        f"choose only grids that a back-end runs fast: {', '.join(CHOICES)}",
        None,
        one_of(CHOICES),
    )
    embedding_grid: str | None = option(
        f"grid of the embedding, or none to leave it unquantized; default: {EMBEDDING_AND_HEAD}, "
        "or what --recipe says",
        None,
    )
    head_grid: str | None = option(
        "grid of the output head, likewise; a tied one is the embedding, and needs one of the two",
        None,
    )
    misfit: str = option(
        "weights whose rows do not fit their grid: "
        + "; ".join(f"{name}: {what}" for name, what in MISFIT_CHOICES.items()),
        NEXT,
        one_of(MISFIT_CHOICES),
    )
    grid_for: tuple[str, ...] = option(
        "another grid for the modules that match a regular expression, as PATTERN=GRID; "
        "the last one that matches counts",
        (),
    )
    keep: tuple[str, ...] = option("regular expression of modules that stay unquantized", ())

    def __post_init__(self) -> None:
        super().__post_init__()
        self.grids_by_pattern()
        ways = ("recipe", "target_size", "target_bits")
        given = [flag(name) for name in ways if getattr(self, name) is not None]
        if len(given) > 1:
            raise UserError(f"{given[0]} does not go with {given[1]}; give one of them")
        if self.for_ and not self.has_target:
            raise UserError(
                "--for chooses grids under a budget; add --target-size or --target-bits"
            )
        if self.target_size is not None:
            parse_size(self.target_size, "--target-size")

    @property
    def has_target(self) -> bool:
        """Whether the grids are chosen by measurement."""
        return self.target_size is not None or self.target_bits is not None

    def grids_by_pattern(self) -> dict[str, str]:
        """`grid_for` as pattern -> grid name. Raises UserError for an entry without both."""
        pairs = [entry.rpartition("=") for entry in self.grid_for]
        for entry, (pattern, _, grid) in zip(self.grid_for, pairs, strict=True):
            if not pattern or not grid:
                raise UserError(f"--grid-for {entry!r} must be PATTERN=GRID, like down_proj=q6_k")
        return {pattern: grid for pattern, _, grid in pairs}


@dataclass(frozen=True, kw_only=True)
class CalibrationSettings(Group):
    """What is known of the inputs of projections before training."""

    title = "calibration"

    imatrix: str | None = option(
        "importance of input channels from a file of llama-imatrix (GGUF or .dat); "
        "default: measured on the training text",
        None,
    )
    importance_tokens: int = option(
        "tokens of training text that importance is measured on", 65536, at_least(1)
    )


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings(Group):
    """What training minimises."""

    title = "objective"

    teacher: str = option(
        "self: KL to the model's own full precision; none: cross-entropy; or a model to distil; "
        "auto: self, or none where --streamed would have to hold a second copy",
        AUTO,
    )
    cross_entropy_weight: float = option(
        "share of cross-entropy in the loss with a teacher, 0 to 1", 0.0, between(0, 1)
    )
    teacher_cache: str | None = option(
        "folder for the teacher's most likely tokens; the teacher is then run once", None
    )
    teacher_top_k: int = option(
        "tokens kept per position in --teacher-cache", 64, at_least(1)
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.teacher_cache and self.teacher == NONE:
            raise UserError("--teacher-cache needs a --teacher (self, or a model)")


@dataclass(frozen=True, kw_only=True)
class ActivationSettings(Group):
    """Which activations are fake-quantized, and how."""

    title = "activations"

    activations: str | None = option(
        f"grid of the projections' inputs: {', '.join(table.ACTIVATION_GRIDS)}; default: none",
        None,
    )
    kv_bits: int | None = option(
        "bits of keys and values, 4 or 8; default: unquantized", None, one_of((4, 8))
    )
    setting: str | None = option(
        "weights-activations-cache in bits, as 4-8-8, instead of --activations and --kv-bits", None
    )
    activation_range: str = option(
        f"how static ranges of activations are found: {', '.join(table.RANGE_METHODS)}",
        "mse",
        one_of(table.RANGE_METHODS),
    )
    learn_activation_ranges: bool = option("train the scales of static ranges", False)

    def __post_init__(self) -> None:
        super().__post_init__()
        found = self.activations_and_cache()
        for name, value in found.items():
            if getattr(self, name) not in (None, value):
                raise UserError(
                    f"--setting {self.setting} does not go with {flag(name)} "
                    f"{getattr(self, name)}; give --setting, or --activations and --kv-bits"
                )
        grid = table.find_activation_grid(found["activations"]) if found["activations"] else None
        if self.learn_activation_ranges and grid and not grid.static:
            raise UserError(
                f"--learn-activation-ranges needs a static grid, and --activations {grid.name} "
                f"measures its ranges as it goes; use int{grid.bits}-tensor"
            )

    def activations_and_cache(self) -> dict[str, Any]:
        """`activations` and `kv_bits`, also where `setting` says them."""
        if self.setting is None:
            return {"activations": self.activations, "kv_bits": self.kv_bits}
        stands_for = table.parse_setting(self.setting)
        return {"activations": stands_for.activations, "kv_bits": stands_for.kv_bits}


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings(Group):
    """How much is trained on, and how fast."""

    title = "schedule"

    steps: int = option("optimizer steps of the model as a whole", 500, at_least(1))
    batch_size: int = option("sequences per step and device", 4, at_least(1))
    sequence_length: int = option(  # one token has nothing to predict
        "tokens per sequence; short ones leave late positions untrained", 512, at_least(2)
    )
    gradient_accumulation: int = option("batches per step", 1, at_least(1))
    learning_rate: float | None = option(
        "peak rate of A and B, in steps of the grid; default: "
        + ", ".join(f"{init.learning_rate:g} from {name}" for name, init in LORA_INITS.items())
        + f", and after blocks {AfterBlocks.LOW_RANK:g}",
        None,
        at_least(0),
    )
    scale_learning_rate: float | None = option(
        f"peak rate of the scales, in steps of the grid; default: {SCALE_RATE:g}, and after blocks "
        f"{AfterBlocks.SCALE:g}, on 2 bits {AfterBlocks.SCALE_OF_2_BITS:g}",
        None,
        at_least(0),
    )
    weight_learning_rate: float = option(
        "peak rate of the weights of --method full", 1e-4, at_least(0)
    )
    optimizer: str = option(f"optimiser: {', '.join(OPTIMIZERS)}", "adamw")
    gradient_checkpointing: bool = option(
        "keep only the inputs of every block and compute the rest again in the backward pass", False
    )
    seed: int = option("of A, B and the order of the text", 0, at_least(0))

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_unavailable(self.optimizer)

    @property
    def sequences(self) -> int:
        """Sequences that the whole run sees on one device."""
        return self.steps * self.batch_size * self.gradient_accumulation

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimiser step sees on one device."""
        return self.batch_size * self.gradient_accumulation * self.sequence_length

    @property
    def rates(self) -> dict[str, float]:
        """Peak rates by what they are of, see `lrqat.training.optimizers.RATE_OF`."""
        assert self.learning_rate is not None, "`TrainConfig.resolved` knows it"
        return {
            "low_rank": self.learning_rate,
            "scale": SCALE_RATE if self.scale_learning_rate is None else self.scale_learning_rate,
            "weight": self.weight_learning_rate,
        }

    @property
    def trains_scales(self) -> bool:
        """Whether scales and minima are trained, where the method trains them."""
        return self.scale_learning_rate is None or self.scale_learning_rate > 0
