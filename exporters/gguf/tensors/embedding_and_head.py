"""The ggml types of an unquantized embedding and output head.

`--embedding-type` and `--head-type` choose them apart from those of other matrices, as
llama-quantize's --token-embedding-type and --output-tensor-type do; what does not depend on the
format is in `exporters.embedding_and_head`. By default nothing is lost:

- the head is multiplied with activations, which llama.cpp rounds to the type of the weights, so
  that bfloat16 would cost precision there even where it holds every weight: f16 if that is exact,
  else f32;
- an embedding that is not the head too is only looked up, and a looked-up row is exact in any
  type: bf16 serves as well, which halves the embedding of a model that was trained in bfloat16.

Source: ggml-cpu.c `type_traits_cpu`, ggml-cpu/ops.cpp `ggml_compute_forward_get_rows`.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from exporters.embedding_and_head import (
    AUTO,
    EmbeddingAndHead,
    head_is_embedding,
    refuses_other_type,
)
from exporters.gguf.blocks import Block, ValueBlock, float_blocks, row_bytes
from exporters.gguf.options import Options
from exporters.gguf.tensors.rounded_values import value_blocks
from exporters.gguf.tensors.sources import EMBEDDING, HEAD, Source
from exporters.parallel import in_order
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import ExportRefusedError

_SPAN_VALUES = 1 << 22  # that one process looks at
_BOTH = EmbeddingAndHead(EMBEDDING, HEAD)


def asked_type(source: Source, options: Options) -> str:
    """The type the options want for an unquantized matrix: a name, or "auto"."""
    asked = _BOTH.asked_type(source.name, options)
    return options.float_type if asked == AUTO else asked


def lossless_types(checkpoint: Checkpoint, source: Source) -> tuple[str, ...]:
    """The narrow types that cost an unquantized matrix nothing where they hold all its values."""
    is_looked_up = source.name == EMBEDDING and not head_is_embedding(checkpoint)
    return ("f16", "bf16") if is_looked_up else ("f16",)


def refuses_head_type(sources: list[Source], options: Options) -> str | None:
    """Why a head that is the embedding cannot have a type of its own, if that is asked for.

    Args:
        sources: all tensors of the file.
        options: the user's.
    """
    has_head = any(source.name == HEAD for source in sources)
    return EmbeddingAndHead(EMBEDDING, HEAD if has_head else None).refuses_head_type(options)


def check_trained(checkpoint: Checkpoint, source: Source, block: Block, options: Options) -> None:
    """Raise ExportRefusedError if a trained embedding or head is asked to be of another type.

    Args:
        checkpoint: whose tensor it is.
        source: the trained tensor.
        block: the exact type that it gets.
        options: the user's.
    """
    asked, flag = _BOTH.asked_type(source.name, options), _BOTH.flag(source.name)
    if flag and asked not in (AUTO, block.NAME):
        grid = source.grid(checkpoint).name
        raise ExportRefusedError(refuses_other_type(flag, asked, source.origin, grid, block.NAME))


@dataclass(frozen=True)
class EmbeddingOrHeadType:
    """What an unquantized embedding or head is stored in, and what it would be in each other type.

    Attributes:
        name: the tensor's name in the file.
        chosen: the type it gets.
        bytes: by type, the smallest first.
        changed: values that change, by type, for those that keep values one by one.
    """

    name: str
    chosen: str
    bytes: dict[str, int]
    changed: dict[str, int]

    def line(self) -> str:
        """One line for people."""
        parts = []
        for name, nbytes in self.bytes.items():
            changed = self.changed.get(name)
            loss = "rounds nearly all values" if changed is None else f"{changed:,} values change"
            parts.append(f"{name} {nbytes:,} bytes ({loss if changed != 0 else 'exact'})")
        return f"{self.name} is {self.chosen}; {_BOTH.flag(self.name)} may be {', '.join(parts)}"

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {"name": self.name, "chosen": self.chosen, "bytes": self.bytes,
                "changed": self.changed}  # fmt: skip


def embedding_or_head_type(
    source: Source, block: Block, changed: dict[str, int]
) -> EmbeddingOrHeadType | None:
    """What the user could choose for `source`, or None if it is no unquantized embedding or head.

    Args:
        source: the tensor.
        block: the type that it gets.
        changed: from `changed_values`.
    """
    if _BOTH.flag(source.name) is None or source.quantized:
        return None
    sizes = {name: _bytes(other, source) for name, other in value_blocks().items()}
    fitting = {name: size for name, size in sizes.items() if size}
    ordered = dict(sorted(fitting.items(), key=lambda item: item[1]))
    return EmbeddingOrHeadType(source.name, block.NAME, ordered, changed)


def changed_values(checkpoint: Checkpoint, source: Source) -> dict[str, int]:
    """How many values of an unquantized matrix each type changes, of those that keep them singly.

    Raises:
        CheckpointError: the tensor cannot be read or is not finite.
    """
    kept = Counter[str]()
    bytes_of_row = np.dtype(np.float32).itemsize * source.shape[-1]
    for counts in in_order(
        partial(_kept_values, checkpoint, source),
        source.spans(_SPAN_VALUES),
        lambda span: bytes_of_row * (span.stop - span.start),
    ):
        kept += counts
    return {name: math.prod(source.shape) - kept[name] for name in float_blocks()}


def _kept_values(checkpoint: Checkpoint, source: Source, span: slice) -> Counter[str]:
    kept = Counter[str]()
    for _, values in source.floating_pieces(checkpoint, span):
        for name, block in float_blocks().items():
            kept[name] += int(np.count_nonzero(block.exact(values)))
    return kept


def _bytes(block: ValueBlock, source: Source) -> int:
    """Bytes of `source` in a type, 0 if its rows are not whole blocks."""
    try:
        return source.rows * row_bytes(block, source.shape[-1])
    except ValueError:
        return 0
