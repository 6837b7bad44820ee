"""Refusing what a runtime would not compute: activations that were rounded in training."""

from lrqat.checkpoint.reader import Checkpoint


def activation_grid(checkpoint: Checkpoint, name: str) -> str | None:
    """What the input of the module `name` was rounded to in training, or None."""
    record = checkpoint.manifest.get("activations") or {}
    found = record.get("modules", {}).get(name)
    return None if found is None else str(found)


def refuses_activations(checkpoint: Checkpoint, runtime: str, own: tuple[str, ...]) -> str | None:
    """Why a model trained with rounded activations is not what `runtime` computes, or None.

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
