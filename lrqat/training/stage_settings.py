"""The settings of the stages of a run: block by block, then the model as a whole."""

from dataclasses import dataclass

from lrqat.settings import AUTO, Group, at_least, one_of, option

STAGES = ("blocks,model", "blocks", "model")
NEAREST, COMPENSATED = "nearest", "compensated"  # as --block-start
BLOCK_BATCH = 2048  # tokens of a step of a block


@dataclass(frozen=True, kw_only=True)
class StageSettings(Group):
    """What is trained before the model as a whole."""

    title = "stages"

    stages: str = option(
        "blocks: every decoder block learns to do what it did, all of its weights; model: A, B and "
        "the scales, end to end; auto: blocks,model on 4 bits or fewer, else model",
        AUTO,
        one_of((AUTO, *STAGES)),
    )
    block_start: str = option(
        "nearest: blocks start rounded to nearest; compensated: so that rounding errors make up "
        "for one another (GPTQ), whose blocks are nearer and whose models are not",
        NEAREST,
        one_of((NEAREST, COMPENSATED)),
    )
    block_steps: int = option(
        f"steps of each block, of some {BLOCK_BATCH:,} tokens", 100, at_least(1)
    )
    block_tokens: int | None = option(
        "tokens of the text that blocks are trained on; default: what their steps take, so that "
        "none is seen twice",
        None,
        at_least(2),
    )
    block_learning_rate: float = option(
        "peak rate of a block's weights, in steps of the grid", 1.5e-2, at_least(0)
    )
    block_scale_learning_rate: float = option(
        "peak rate of a block's scales, in steps of the grid", 2e-3, at_least(0)
    )

    train_norms: bool = option(
        "train the weights of norms, too, in the blocks and after them; they stay unquantized, so "
        "the file is no larger",
        True,
    )

    @property
    def block_text(self) -> int:
        """Tokens of the text that blocks are trained on, where there are as many."""
        return self.block_tokens or self.block_steps * BLOCK_BATCH

    @property
    def by_blocks(self) -> bool:
        """Whether blocks are fitted one by one; known once `stages` is no longer auto."""
        return "blocks" in self.stages

    @property
    def as_a_whole(self) -> bool:
        """Whether the model is trained end to end."""
        return "model" in self.stages
