"""Warnings of a run that needs more memory than there is, with what would make it need less.

It is a warning and not a refusal, in a dry run and in a real one: the estimate is within some
15 %, swap is memory too, and the libraries that people come from (Unsloth, mlx-lm, TRL) try.
"""

from collections.abc import Callable

import torch

from lrqat.layers.methods import METHODS
from lrqat.training.config import TrainConfig
from lrqat.training.machine import device_memory, host_memory
from lrqat.training.phases import RunMemory

# Phase -> what makes it smaller, and whether that is left to do in a run of these settings.
_REMEDIES: dict[str, tuple[tuple[str, Callable[[TrainConfig], bool]], ...]] = {
    "loading": (("--streamed", lambda c: not c.streamed),),
    "measuring": (
        ("--streamed", lambda c: not c.streamed),
        ("a smaller --context", lambda c: True),
        ("a smaller --sequence-length", lambda c: not c.streamed),
    ),
    "blocks": (
        ("--streamed", lambda c: not c.streamed),
        ("fewer --block-tokens", lambda c: True),
        ("--stages model", lambda c: True),
    ),
    "training": (
        ("--gradient-checkpointing", lambda c: not c.gradient_checkpointing),
        ("a smaller --batch-size (with --gradient-accumulation)", lambda c: c.batch_size > 1),
        ("a smaller --sequence-length", lambda c: True),
        ("--optimizer adamw8bit", lambda c: c.optimizer == "adamw"),
        ("--method lr-qat", lambda c: "weight" in METHODS[c.method].trains),
    ),
    "evaluation": (("a smaller --context", lambda c: True),),
    "writing": (),
}
_ELSE = "a smaller model, or a machine with more"


def warnings_of(memory: RunMemory, config: TrainConfig, device: str) -> tuple[str, ...]:
    """One sentence for each kind of memory of which there is too little.

    Args:
        memory: what the run needs.
        config: its settings, resolved.
        device: torch device name.
    """
    if torch.device(device).type == "cpu":
        return _short(memory.total, host_memory(), "this machine allows", memory.fullest, config)
    return (
        *_short(memory.total, device_memory(device), f"{device} has", memory.fullest, config),
        *_short(memory.host, host_memory(), "this machine allows", "loading", config),
    )


def _short(
    needed: int, available: int, where: str, phase: str, config: TrainConfig
) -> tuple[str, ...]:
    if needed <= available:
        return ()
    advice = [said for said, helps in _REMEDIES[phase] if helps(config)]
    return (
        f"the run needs about {_gib(needed)} of memory ({phase}), and {where} {_gib(available)}: "
        f"it will probably fail; try {', '.join([*advice, _ELSE])}",
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
