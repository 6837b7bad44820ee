"""The ONNX types of an unquantized embedding and output head.

`--embedding-type` and `--head-type` choose them (what does not depend on the format is in
`exporters.embedding_and_head`):

    float32, float16, bfloat16   as such; a row is cast when it is looked up, and the head when the
                                 model is loaded (ONNX Runtime folds the Cast of a constant), so
                                 that a narrow type halves the file and costs no time
    int8                         integers and one float32 scale per row, rounded: `integers`
    auto                         as the checkpoint stores it, which loses nothing; the float type of
                                 everything else where the runtime was not seen to take that, or
                                 computes in half precision

A head that is the embedding is stored once, [vocabulary, K], and transposed when the model is
loaded.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.embedding_and_head import AUTO, EmbeddingAndHead, refuses_other_type
from exporters.onnx.options import Options
from exporters.onnx.presets import PRESETS
from exporters.onnx.weights.integers import read_integers
from lrqat.checkpoint.reader import Checkpoint

INT8_ROWS = "int8"
FLOATS = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}
_STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_CHUNK_ROWS = 4096


def stored_type(
    checkpoint: Checkpoint, both: EmbeddingAndHead, module: str, options: Options
) -> str:
    """The type that an unquantized embedding or head gets: a name in `FLOATS`, or int8."""
    asked = both.asked_type(module, options)
    if asked != AUTO:
        return asked
    stored = _STORED.get(checkpoint.floating_dtype(f"{module}.weight"), "float32")
    taken = stored in PRESETS[options.preset].embedding_type
    return stored if taken and options.float_type == "float32" else str(options.float_type)


def refuses_types(checkpoint: Checkpoint, both: EmbeddingAndHead, options: Options) -> list[str]:
    """Why the types asked for cannot be had.

    Args:
        checkpoint: the fused checkpoint.
        both: its embedding and head.
        options: resolved.
    """
    tied = both.refuses_head_type(options)
    reasons = [tied] if tied else []
    if both.embedding is None:
        if (options.embedding_type, options.head_type) != (AUTO, AUTO):
            reasons.append(
                "--embedding-type and --head-type: no embedding was found in this model; leave "
                "them out"
            )
        return reasons
    for module in filter(None, (both.embedding, both.head)):
        asked, flag = both.asked_type(module, options), str(both.flag(module))
        if asked == AUTO:
            continue
        if module in checkpoint.quantized_names:
            grid = checkpoint.grid(module).name
            reasons.append(refuses_other_type(flag, asked, module, grid))
        elif asked in ("float32", "bfloat16") and options.float_type == "float16":
            reasons.append(
                f"{flag} {asked}: the products are in half precision, and {module} would be "
                f"rounded to it when it is used; leave {flag} out"
            )
    return reasons


@dataclass(frozen=True)
class EmbeddingOrHeadType:
    """What an unquantized embedding or head is stored in.

    Attributes:
        module: its module name.
        flag: the option that chooses.
        type: what it is stored in.
        bytes: of every type it could have.
        follows: whether it is in half precision because everything unquantized is.
        changed: values that are not the checkpoint's any more; 0 where it is exact.
        error: their root mean square error, relative to that of the values.
    """

    module: str
    flag: str
    type: str
    bytes: dict[str, int]
    follows: bool = False
    changed: int = 0
    error: float = 0.0

    def line(self) -> str:
        """One line for people."""
        others = ", ".join(f"{k} {n:,} bytes" for k, n in self.bytes.items() if k != self.type)
        how = "as everything unquantized" if self.follows else "exact"
        if self.changed:
            how = (
                f"rounded, which was not trained: {self.changed:,} values change, their relative "
                f"error is {self.error:.2g}"
            )
        return (
            f"{self.module} is {self.type}, {self.bytes[self.type]:,} bytes, {how}; "
            f"{self.flag} may be {others}"
        )


def embedding_or_head_type(
    checkpoint: Checkpoint, both: EmbeddingAndHead, module: str, options: Options
) -> EmbeddingOrHeadType:
    """What an unquantized embedding or head is stored in.

    It is read only where it may have to be rounded.

    Args:
        checkpoint: the fused checkpoint.
        both: its embedding and head.
        module: one of them.
        options: resolved.

    Raises:
        CheckpointError: it cannot be read.
    """
    chosen = stored_type(checkpoint, both, module, options)
    name = f"{module}.weight"
    rows, columns = checkpoint.shape(name)
    offered = PRESETS[options.preset].embedding_type
    sizes = {t: rows * columns * FLOATS[t].bitwidth // 8 for t in FLOATS if t in offered}
    sizes |= {INT8_ROWS: rows * (columns + 4)}
    exact = chosen in (_STORED.get(checkpoint.floating_dtype(name)), "float32")
    follows = not exact and both.asked_type(module, options) == AUTO
    loss = (0, 0.0) if exact or follows else _loss(checkpoint, module, chosen)
    return EmbeddingOrHeadType(module, str(both.flag(module)), chosen, sizes, follows, *loss)


def _loss(checkpoint: Checkpoint, module: str, chosen: str) -> tuple[int, float]:
    """How many values of an embedding or head change in `chosen`, and the relative error."""
    values = checkpoint.floating(f"{module}.weight")
    tensor = read_integers(checkpoint, module) if chosen == INT8_ROWS else None
    changed, error, power = 0, 0.0, 0.0
    for start in range(0, len(values), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        wide = values[part].astype(np.float32)
        with np.errstate(over="ignore"):
            narrow: Any = (
                wide.astype(FLOATS[chosen].numpy())
                if tensor is None
                else tensor.q[part] * tensor.scale[part]
            )
        difference = narrow.astype(np.float32) - wide
        changed += int(np.count_nonzero(difference))
        error += float(np.square(difference, dtype=np.float64).sum())
        power += float(np.square(wide, dtype=np.float64).sum())
    return changed, math.sqrt(error / power) if power else 0.0
