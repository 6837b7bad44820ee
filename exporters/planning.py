"""What the plans of all formats say in the same words, and read from the checkpoint alike."""

import re
from collections.abc import Sequence

from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import ExportRefusedError


def any_layer(name: str) -> str:
    """`name` with a star for the number of its layer: the layers share a line of the summary."""
    return re.sub(r"\.\d+\.", ".*.", name)


def remarks(notes: Sequence[str], refusals: Sequence[str]) -> list[str]:
    """The last lines of a plan's summary."""
    return [f"note: {note}" for note in notes] + [f"refused: {reason}" for reason in refusals]


def refuse_inexact(
    refusals: Sequence[str], consequence: str = "the export would not be exact"
) -> None:
    """Raise ExportRefusedError with the consequence and the reasons, if a plan has any."""
    if refusals:
        reasons = "\n".join(f"- {reason}" for reason in refusals)
        raise ExportRefusedError(f"{consequence}:\n{reasons}")


def activation_grid(checkpoint: Checkpoint, name: str) -> str | None:
    """The grid that the input of the module `name` was fake-quantized to in training, or None."""
    record = checkpoint.manifest.get("activations") or {}
    found = record.get("modules", {}).get(name)
    return None if found is None else str(found)


def refuses_activations(checkpoint: Checkpoint, runtime: str, own: tuple[str, ...]) -> str | None:
    """Why a model trained with fake-quantized activations is not what `runtime` computes, or None.

    Args:
        checkpoint: the fused checkpoint.
        runtime: its name, for the message.
        own: beginnings of the names of the activation grids that are the runtime's own rounding.
    """
    record = checkpoint.manifest.get("activations") or {}
    grids = sorted(set(record.get("modules", {}).values()))
    foreign = [name for name in grids if not name.startswith(own)]
    if foreign:
        return (
            f"the model was trained with activations on {', '.join(foreign)}, and {runtime} does "
            f"not round them so; train with --activations {own[0]}, its own rounding, or without"
        )
    if record.get("kv_bits"):
        return (
            f"the model was trained with keys and values in {record['kv_bits']} bits, which this "
            f"version does not write for {runtime}; train without --kv-bits"
        )
    return None
