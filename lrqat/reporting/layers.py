"""The weights of a checkpoint one by one: grid, integers, and how far they are from the base's."""

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lrqat.checkpoint.reader import Checkpoint, QuantizedTensor
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.grids.grid import Grid
from lrqat.reporting.material import Layer, Training

if TYPE_CHECKING:
    from lrqat.models.weight_files import Weights

Progress = Callable[[Iterable[Any]], Iterable[Any]]
_PIECE_ROWS = 4096  # that are compared at a time


def layers_of(
    checkpoint: Checkpoint, training: Training | None, base: str | None, progress: Progress
) -> tuple[Layer, ...]:
    """Every weight on a grid.

    Args:
        checkpoint: opened.
        training: what changed in it, if that is known.
        base: folder or GGUF file of the model that it was made from, or None.
        progress: wraps the iterable of weights.

    Raises:
        UserError: a damaged file, or a base that is none.
    """
    known = training or Training(finished=True)
    weights = None if base is None else open_base(base)
    found = []
    for name in progress(checkpoint.quantized_names):
        tensor = checkpoint.quantized(name)
        rows, columns = tensor.q.shape
        original = None if weights is None else original_of(weights, name, checkpoint.kind(name))
        found.append(
            Layer(
                name=name,
                grid=tensor.grid.name,
                bits=tensor.grid.bits_per_weight(columns),
                weights=rows * columns,
                error=None if original is None else relative_error(_rows_of(tensor), original),
                integers=_integers(tensor.q, tensor.grid),
                changed_in_blocks=known.block_shares.get(name),
                changed=known.shares.get(name),
                sensitivity=known.sensitivity.get(name),
            )
        )
    return tuple(found)


def open_base(base: str) -> "Weights | None":
    """The weights of a base; None where they are not safetensors, or not on this machine."""
    from lrqat.models.stored_model import open_model

    return open_model(base).weights


def original_of(weights: "Weights", name: str, kind: WeightKind) -> NDArray[np.float32] | None:
    """The weight (out, in) that one of the checkpoint's was made from, if it is there."""
    stack, _, expert = name.rpartition(".")
    if kind == WeightKind.EXPERTS and stack in weights.names:
        return weights(stack)[int(expert)].float().numpy()
    for asked in (f"{name}.weight", f"{name.partition('.')[2]}.weight"):  # without "transformer."
        if asked in weights.names:
            values = weights(asked).float()
            return (values.T if kind == WeightKind.CONV1D else values).numpy()
    return None


def relative_error(
    pieces: Iterable[NDArray[np.float32]], original: NDArray[np.float32]
) -> float | None:
    """|W - W0|^2 / |W0|^2, summed in float64; None for a base of another shape, or of zeros.

    Args:
        pieces: consecutive rows of W, each (rows, in).
        original: W0, (out, in).
    """
    difference = size = 0.0
    start = 0
    for piece in pieces:
        wanted = original[start : start + len(piece)].astype(np.float64)
        if wanted.shape != piece.shape:
            return None
        difference += float(np.square(piece - wanted).sum())
        size += float(np.square(wanted).sum())
        start += len(piece)
    return difference / size if size and start == len(original) else None


def _rows_of(tensor: QuantizedTensor) -> Iterator[NDArray[np.float32]]:
    """A weight dequantised, some rows at a time."""
    for start in range(0, len(tensor.q), _PIECE_ROWS):
        rows = np.arange(start, min(start + _PIECE_ROWS, len(tensor.q)))
        yield tensor.take(rows).dequantize()


def _integers(q: NDArray[np.int8], grid: Grid) -> tuple[float, ...]:
    """Share of each integer from q_min to q_max, or of each level of a codebook."""
    counts = np.bincount(q.ravel().astype(np.int64) - grid.q_min, minlength=grid.q_max - grid.q_min)
    if grid.levels:
        counts = counts[np.array(grid.levels) - grid.q_min]
    return tuple(float(share) for share in counts / max(1, q.size))
