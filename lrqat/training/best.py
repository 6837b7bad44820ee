"""What a run publishes: the state with the least held-out KL, perhaps the one it began with."""

from pathlib import Path
from typing import Any

import torch

from lrqat.errors import CheckpointError
from lrqat.models.preparation import quantized_layers
from lrqat.training.measuring import Beginning, Measurement, Say
from lrqat.training.states.sealed import read_sealed, write_sealed
from lrqat.training.trainer import trained_parameters

_FILE = "start.safetensors"


def keep_start(model: Any, folder: Path) -> None:
    """Write what is trained of a prepared model, before it is, into the folder of states."""
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed(folder / _FILE, trained_parameters(model), {})


@torch.no_grad()
def restore_start(model: Any, folder: Path, *, rounded: bool) -> None:
    """Put a model back to where its training began.

    Args:
        model: as training left it.
        folder: of the states of the run.
        rounded: to round-to-nearest instead, which is the start with A = 0.

    Raises:
        CheckpointError: what was kept is missing, altered, or of another model.
    """
    start = read_sealed(folder / _FILE)[0]
    own = dict(model.named_parameters())
    if any(name not in own or own[name].shape != value.shape for name, value in start.items()):
        raise CheckpointError(
            f"{folder / _FILE} is of another model or --rank; start anew with --overwrite"
        )
    for name, value in start.items():
        own[name].copy_(value)
    if rounded:
        for _, weight in quantized_layers(model):
            weight.lora_a.zero_()


def put_back(model: Any, folder: Path, beginning: Beginning, after: Measurement, say: Say) -> bool:
    """Put a model back to where it was better, if training only made it worse.

    Args:
        model: as training left it.
        folder: of the states of the run.
        beginning: where training began.
        after: where it ended.
        say: is told.

    Returns:
        Whether it was put back.
    """
    ways = [("its start", beginning.start, False)]
    if beginning.rounded is not None:
        ways.append(("round-to-nearest", beginning.rounded, True))
    name, best, rounded = min(ways, key=lambda way: _distance(way[1]))
    if _distance(after) <= _distance(best):
        return False
    say(f"training ended above {name}, so {name} is what is written")
    restore_start(model, folder, rounded=rounded)
    return True


def _distance(measured: Measurement) -> float:
    """KL from the teacher, or without one, perplexity."""
    return measured.perplexity.perplexity if measured.kl is None else measured.kl
