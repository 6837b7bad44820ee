"""The settings of a training run, all in one object.

Warm-up and betas are those of the LR-QAT paper's experiments (10 % warm-up, linear decay, beta2
0.95, no weight decay, gradients clipped to norm 1). What differs is for runs of hundreds of steps
where the paper has 10,000, and comes from runs (docs/results.md): the factor alpha/r is 16 and not
1/32, since a factor of 1 changed 0.2 % of the integers in 200 steps; rates count steps of the grid
(`lrqat.training.rates`); scales start from errors weighted by the importance of the inputs, and A
and B from what cancels most of the error of rounding (`lrqat.init.lora_init`), with a lower rate
from there.
"""

from dataclasses import dataclass, replace
from typing import Any

from lrqat.activations.table import parse_setting
from lrqat.errors import UserError
from lrqat.grids.grid import find_grid
from lrqat.init.starts import LORA_INITS, RANGE_INITS
from lrqat.layers.methods import METHODS
from lrqat.models.preparation_settings import Settings
from lrqat.settings import AUTO, groups_of
from lrqat.training.model_settings import ModelSettings
from lrqat.training.output_settings import OutputSettings
from lrqat.training.settings import (
    NONE,
    SCALE_RATE,
    SELF,
    ActivationSettings,
    AfterBlocks,
    CalibrationSettings,
    GridSettings,
    ObjectiveSettings,
    ScheduleSettings,
)
from lrqat.training.stage_settings import StageSettings
from lrqat.training.text_settings import TextSettings

_FEW_BITS = 4


@dataclass(frozen=True, kw_only=True)
class TrainConfig(
    ModelSettings,
    TextSettings,
    GridSettings,
    Settings,
    CalibrationSettings,
    ObjectiveSettings,
    ActivationSettings,
    AfterBlocks,
    StageSettings,
    ScheduleSettings,
    OutputSettings,
):
    """One training run: `model`, `data`, `output`, and what else differs from the defaults.

    Functions that need a part of it are typed with the group of that part.

    Raises:
        UserError: a number that is out of range, an unknown name, or settings that contradict one
            another, on construction.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.setting is not None:
            _refuse_other_width(self.grid, self.setting)
        if self.streamed:
            _refuse_measuring(self)
        if self.stages != AUTO and self.by_blocks and self.method != "lr-qat":
            raise UserError(
                f"--stages {self.stages} is of --method lr-qat, and --method {self.method} has no "
                "stage for blocks; use --stages model"
            )
        if self.imatrix and self.range_init != AUTO and not RANGE_INITS[self.range_init].weighted:
            raise UserError(
                f"--imatrix is not used by --range-init {self.range_init}; "
                "add --range-init importance"
            )

    @property
    def norms_after_blocks(self) -> bool:
        """Whether the norms learn with the model as a whole, at the rate of the scales."""
        return self.train_norms and self.by_blocks and self.as_a_whole and self.trains_scales

    def resolved(self) -> "TrainConfig":
        """The same with a value for everything that depends on other settings.

        These are the starts that are `auto`, the rate of A and B, and what `setting` stands for.
        """
        whole = not self.streamed  # a model that is never whole cannot be run to measure its inputs
        stages = self._stages()
        # Where blocks were fitted, the errors along the directions are gone.
        blocks = "blocks" in stages
        weighted = whole or blocks or bool(self.imatrix)
        chosen = self.with_starts(importance=weighted, directions=whole and not blocks)
        return replace(
            chosen,
            stages=stages,
            teacher=self._teacher(stages),
            **chosen._rates(after_blocks=blocks),
            **self.activations_and_cache(),
        )

    def _rates(self, *, after_blocks: bool) -> dict[str, Any]:
        """`learning_rate` and `scale_learning_rate`, or what they are where nobody said."""
        low_rank, scale = LORA_INITS[self.lora_init].learning_rate, SCALE_RATE
        if after_blocks:
            two = find_grid(self.grid).bits <= 2
            low_rank = AfterBlocks.LOW_RANK
            scale = AfterBlocks.SCALE_OF_2_BITS if two else AfterBlocks.SCALE
        of_method = METHODS[self.method].learning_rate
        low_rank = low_rank if of_method is None else of_method
        return {
            "learning_rate": low_rank if self.learning_rate is None else self.learning_rate,
            "scale_learning_rate": (
                scale if self.scale_learning_rate is None else self.scale_learning_rate
            ),
        }

    def _stages(self) -> str:
        """`stages`, or what auto stands for."""
        if self.stages != AUTO:
            return self.stages
        fits = self.method == "lr-qat" and not self.streamed
        few = self.has_target or find_grid(self.grid).bits <= _FEW_BITS
        return "blocks,model" if fits and few else "model"

    def _teacher(self, stages: str) -> str:
        """`teacher`, or what auto stands for."""
        if self.teacher != AUTO:
            return self.teacher
        # Exact frozen weights give the original back; any other form needs a copy of it.
        second = self.streamed and (self.phi != "fp32" or "blocks" in stages)
        return NONE if second else SELF

    def to_json(self) -> dict[str, Any]:
        """All settings, resolved, for the checkpoint and for a resumed run to compare with."""
        values = vars(self.resolved())
        names = [each.name for _, fields in groups_of(type(self)) for each in fields]
        return {n: list(v) if isinstance(v := values[n], tuple) else v for n in names}


def _refuse_other_width(grid: str, setting: str) -> None:
    wanted, found = parse_setting(setting).weight_bits, find_grid(grid).bits
    if wanted != found:
        raise UserError(
            f"--setting {setting} asks for {wanted}-bit weights and --grid {grid} has {found}; "
            "make them agree"
        )


def _refuse_measuring(config: TrainConfig) -> None:
    """Refuse what needs a whole model, in a run that is streamed."""
    if config.writes_own:
        raise UserError("--streamed has no whole model, which --data self needs to write text")
    if config.adapter:
        raise UserError(
            "--streamed reads weights as they are stored, without --adapter; train without "
            "--streamed, or merge the adapter first (peft: merge_and_unload, save_pretrained)"
        )
    if config.has_target:
        raise UserError(
            "--streamed has no whole model to measure a budget on; run lrqat plan where the model "
            "fits, and give its recipe with --recipe"
        )
    scales, low_rank = config.range_init, config.lora_init
    measured = config.by_blocks or config.imatrix
    if scales != AUTO and RANGE_INITS[scales].weighted and not measured:
        raise UserError(
            f"--streamed has no whole model to measure what --range-init {scales} needs; "
            "give --imatrix, or --range-init l2"
        )
    if low_rank != AUTO and LORA_INITS[low_rank].directions:
        raise UserError(
            f"--streamed has no whole model whose inputs --lora-init {low_rank} could measure; "
            "use --lora-init random"
        )
