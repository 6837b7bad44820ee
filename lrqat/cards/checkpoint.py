"""A checkpoint as one of the things that a card describes."""

import math

from lrqat.cards.commands import CHECKPOINT, Artefact
from lrqat.checkpoint.reader import Checkpoint


def describe_checkpoint(checkpoint: Checkpoint, path: str = "") -> Artefact:
    """Its bytes and bits per weight, counted over all tensors; no weights are read.

    Args:
        checkpoint: whose files are there.
        path: where it will be in a repository.
    """
    names = [*checkpoint.quantized_names, *checkpoint.floating_names]
    stored = sum(checkpoint.stored_bytes(name) for name in names)
    weights = sum(math.prod(checkpoint.shape(name)) for name in names)
    files = [name for name in checkpoint.files if name.endswith(".safetensors")]
    return Artefact(
        kind=CHECKPOINT,
        path=path,
        bytes=sum((checkpoint.path / name).stat().st_size for name in files),
        bits_per_weight=8 * stored / weights,
        # Another name keeps transformers from loading what it would load wrongly.
        standard=any(name.startswith("model") for name in files),
    )
