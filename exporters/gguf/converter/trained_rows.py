"""Telling trained rows by their values, wherever a converter has put them.

Rows of a trained weight keep their scales whatever order they come in, so a float32 matrix made
from a checkpoint can be packed without recovering anything, if each of its rows is, bit for bit, a
dequantised row of the checkpoint: that row's own integers and scales are the ones to store. Rows
with equal values may stand for each other.
"""

import hashlib
from collections.abc import Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from lrqat.checkpoint.reader import Checkpoint, QuantizedTensor
from lrqat.errors import ExportRefusedError

Row = tuple[str, int]


def row_keys(values: NDArray[np.float32]) -> Iterator[bytes]:
    """A digest of each row of `values` (..., columns), in order.

    Zeros have no sign: scale * 0 may be negative, and scale * q less an equal minimum never is.
    """
    rows = np.ascontiguousarray(values, np.float32).reshape(-1, values.shape[-1]) + np.float32(0)
    return (hashlib.blake2b(row.data, digest_size=16).digest() for row in rows)


class TrainedRows:
    """The rows of a checkpoint's trained weights, by digest.

    Memory: some 200 bytes per row, 300 MB for a model of 7 billion weights.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self.rows: dict[bytes, Row] = {}
        for module in checkpoint.quantized_names:
            values = checkpoint.quantized(module).dequantize()
            self.rows |= {key: (module, i) for i, key in enumerate(row_keys(values))}

    def find(
        self, name: str, values: NDArray[np.float32]
    ) -> tuple[QuantizedTensor, list[str]] | None:
        """Integers and scales of `values` (..., columns) as a matrix, and the modules they are of.

        None if no row is trained.

        Args:
            name: of the result, and in errors.
            values: float32.

        Raises:
            ExportRefusedError: some rows are trained and others are not, or they are on several
                grids.
        """
        found = [self.rows.get(key) for key in row_keys(values)]
        trained = [row for row in found if row is not None]
        if not trained:
            return None
        modules = sorted({module for module, _ in trained})
        if len(trained) < len(found):
            raise ExportRefusedError(
                f"{len(found) - len(trained)} of {len(found)} rows of {name} are no trained rows "
                f"and the others are, of {modules[0]}: the converter changed or padded them"
            )
        tensors = {module: self._checkpoint.quantized(module) for module in modules}
        if len({tensor.grid.name for tensor in tensors.values()}) > 1:
            raise ExportRefusedError(f"{name} is made of weights on several grids: {modules}")
        runs = groupby(trained, key=lambda row: row[0])
        parts = [tensors[m].take(np.array([i for _, i in run], np.intp)) for m, run in runs]
        return QuantizedTensor.join(name, parts), modules
