"""The tensors of a checkpoint as its model sees them: experts stacked, every weight a `.weight`.

A fused checkpoint holds trained experts one by one (`...experts.down_proj.3`) and unquantized ones
as transformers does, in one parameter (experts, out, in) without a suffix.
"""

import math
from dataclasses import dataclass

from lrqat.checkpoint.reader import Checkpoint
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.errors import CheckpointError


@dataclass(frozen=True)
class Stored:
    """One tensor.

    Attributes:
        name: its full name, with ".weight" or ".bias".
        origin: the checkpoint's own name of it: of a trained weight the module.
        quantized: whether it is integers and scales.
        shape: (out, in), (n,) or (experts, out, in).
        stack: module names of trained experts, in order.
    """

    name: str
    origin: str
    quantized: bool
    shape: tuple[int, ...]
    stack: tuple[str, ...] = ()


def stored_tensors(checkpoint: Checkpoint) -> list[Stored]:
    """All of them, trained ones first. Raises CheckpointError for shapes that no tensor has."""
    found: list[Stored] = []
    stacks: dict[str, list[str]] = {}
    for name in checkpoint.quantized_names:
        if checkpoint.kind(name) == WeightKind.EXPERTS:
            stacks.setdefault(name.rpartition(".")[0], []).append(name)
        else:
            found.append(Stored(f"{name}.weight", name, True, checkpoint.shape(name)))
    found += [_stacked(checkpoint, stack, names) for stack, names in stacks.items()]
    for name in checkpoint.floating_names:
        shape = checkpoint.shape(name)
        suffix = ".weight" if len(shape) == 3 and not name.endswith(".weight") else ""
        found.append(Stored(name + suffix, name, False, shape))
    for stored in found:
        if not 1 <= len(stored.shape) <= 3 or math.prod(stored.shape) == 0:
            raise CheckpointError(
                f"{stored.origin} has shape {stored.shape}; expected a vector, a matrix or a stack"
            )
    return found


def _stacked(checkpoint: Checkpoint, stack: str, names: list[str]) -> Stored:
    ordered = [f"{stack}.{i}" for i in range(len(names))]
    shapes = {checkpoint.shape(name) for name in names}
    if set(names) != set(ordered) or len(shapes) > 1:
        raise CheckpointError(
            f"lrqat.json lists {len(names)} experts of {stack}, which are not numbered from 0 or "
            f"have the shapes {sorted(shapes)}"
        )
    return Stored(f"{stack}.weight", stack, True, (len(names), *shapes.pop()), tuple(ordered))
