"""The two big matrices that are often left floating: the embedding and the output head.

`--embedding-type` and `--head-type` choose how they are stored:

    float32, float16, bfloat16   as such; a row is cast when it is looked up, and the head when the
                                 model is loaded (ONNX Runtime folds the Cast of a constant), so
                                 that a narrow type halves the file and costs no time
    int8                         integers and one float32 scale a row, rounded: `rounded_rows`
    auto                         as the checkpoint stores it, which loses nothing; the float type of
                                 everything else where the runtime was not seen to take that, or
                                 computes in half precision

A head that is the embedding is stored once, [vocabulary, K], and transposed when the model is
loaded. What was trained on a grid stays on it.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.onnx.options import Options
from exporters.onnx.presets import PRESETS
from exporters.onnx.weights.rounded_rows import integers_of
from lrqat.checkpoint.reader import Checkpoint

INT8_ROWS = "int8"
FLOATS = {
    "float32": ir.DataType.FLOAT,
    "float16": ir.DataType.FLOAT16,
    "bfloat16": ir.DataType.BFLOAT16,
}
_STORED = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|embed_in|word_embeddings)$")
_HEAD = re.compile(r"^(lm_head|embed_out)$")
_CHUNK_ROWS = 4096


@dataclass(frozen=True)
class Tables:
    """Module names of the embedding and the head.

    Attributes:
        embedding: None where no name is one that we know.
        head: None where the head is the embedding.
    """

    embedding: str | None
    head: str | None

    @property
    def flags(self) -> dict[str, str]:
        """The option that each is chosen with, by module name."""
        found = {self.embedding: "--embedding-type", self.head: "--head-type"}
        return {name: flag for name, flag in found.items() if name is not None}


def find_tables(checkpoint: Checkpoint) -> Tables:
    """The tables of `checkpoint`: a trained embedding, and what else there is, by its name."""
    trained = [n for n in checkpoint.quantized_names if checkpoint.kind(n) == "embedding"]
    floating = [n.removesuffix(".weight") for n in checkpoint.floating_names if ".weight" in n]
    names = [*checkpoint.quantized_names, *floating]
    embeddings = trained + list(filter(_EMBEDDING.search, names))
    return Tables(next(iter(embeddings), None), next(filter(_HEAD.search, names), None))


def asked_type(tables: Tables, module: str, options: Options) -> str:
    """What `options` say about a table."""
    is_head = module == tables.head
    return str(options.head_type if is_head else options.embedding_type)


def table_type(checkpoint: Checkpoint, tables: Tables, module: str, options: Options) -> str:
    """The type that a floating table gets: a name in `FLOATS`, or int8."""
    asked = asked_type(tables, module, options)
    if asked != "auto":
        return asked
    stored = _STORED.get(checkpoint.floating_dtype(f"{module}.weight"), "float32")
    taken = stored in PRESETS[options.preset].embedding_type
    return stored if taken and options.float_type == "float32" else str(options.float_type)


def refuses_tables(checkpoint: Checkpoint, tables: Tables, options: Options) -> list[str]:
    """Why the types asked for cannot be had."""
    asked = {"--embedding-type": options.embedding_type, "--head-type": options.head_type}
    asked = {flag: kind for flag, kind in asked.items() if kind != "auto"}
    reasons = []
    if tables.embedding is None and asked:
        reasons.append(f"{next(iter(asked))}: no embedding was found in this model; leave it out")
    if tables.head is None and options.head_type not in ("auto", options.embedding_type):
        reasons.append(
            f"--head-type {options.head_type}: this model's head is its embedding, one table for "
            f"both; ask for --embedding-type {options.head_type}"
        )
    for module, flag in tables.flags.items():
        kind = asked.get(flag)
        if kind and module in checkpoint.quantized_names:
            reasons.append(
                f"{flag} {kind}: {module} was trained on the grid {checkpoint.grid(module).name} "
                f"and is stored as it was trained; leave {flag} out"
            )
        elif kind in ("float32", "bfloat16") and options.float_type == "float16":
            reasons.append(
                f"{flag} {kind}: the products are in half precision, and {module} would be rounded "
                f"to it when it is used; leave {flag} out"
            )
    return reasons


@dataclass(frozen=True)
class TableChoice:
    """What was chosen for a table that stays floating.

    Attributes:
        module: its module name.
        flag: the option that chooses.
        type: what it is stored in.
        bytes: of every type it could have.
        follows: whether it is in half precision because everything floating is.
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
        how = "as everything floating" if self.follows else "exact"
        if self.changed:
            how = (
                f"rounded, which was not trained: {self.changed:,} values change, their relative "
                f"error is {self.error:.2g}"
            )
        return (
            f"{self.module} is {self.type}, {self.bytes[self.type]:,} bytes, {how}; "
            f"{self.flag} may be {others}"
        )


def table_choice(
    checkpoint: Checkpoint, tables: Tables, module: str, options: Options
) -> TableChoice:
    """What a floating table is stored in; it is read only where it may have to be rounded.

    Raises:
        CheckpointError: it cannot be read.
    """
    kind = table_type(checkpoint, tables, module, options)
    name = f"{module}.weight"
    rows, columns = checkpoint.shape(name)
    offered = PRESETS[options.preset].embedding_type
    sizes = {t: rows * columns * FLOATS[t].bitwidth // 8 for t in FLOATS if t in offered}
    sizes |= {INT8_ROWS: rows * (columns + 4)}
    exact = kind in (_STORED.get(checkpoint.floating_dtype(name)), "float32")
    follows = not exact and asked_type(tables, module, options) == "auto"
    loss = (0, 0.0) if exact or follows else _loss(checkpoint, module, kind)
    return TableChoice(module, tables.flags[module], kind, sizes, follows, *loss)


def _loss(checkpoint: Checkpoint, module: str, kind: str) -> tuple[int, float]:
    """How many values of a table change in `kind`, and the relative error."""
    values = checkpoint.floating(f"{module}.weight")
    tensor = integers_of(checkpoint, module) if kind == INT8_ROWS else None
    changed, error, power = 0, 0.0, 0.0
    for start in range(0, len(values), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        wide = values[part].astype(np.float32)
        with np.errstate(over="ignore"):
            narrow: Any = (
                wide.astype(FLOATS[kind].numpy())
                if tensor is None
                else tensor.q[part] * tensor.scale[part]
            )
        difference = narrow.astype(np.float32) - wide
        changed += int(np.count_nonzero(difference))
        error += float(np.square(difference, dtype=np.float64).sum())
        power += float(np.square(wide, dtype=np.float64).sum())
    return changed, math.sqrt(error / power) if power else 0.0
