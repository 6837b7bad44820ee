"""What a user may choose about a GGUF export."""

import difflib
from dataclasses import dataclass, field

from exporters.gguf.blocks import float_blocks, integer_blocks
from lrqat.errors import ExportRefusedError


@dataclass(frozen=True)
class Options:
    """Choices; the defaults are the smallest exact file.

    Raises:
        ExportRefusedError: an unknown type.
    """

    type: str = field(
        default="auto",
        metadata={
            "help": "type of the trained weights: auto (the one the grid is named after, else the "
            "smallest that is exact), q4_0, q6_k ..., or f32: their exact products as floats, for "
            "comparing the graph"
        },
    )
    float_type: str = field(
        default="auto",
        metadata={
            "help": "type of matrices that stay floating, such as the embedding: auto (f16 where "
            "every value survives, else f32), f16, bf16 or f32; vectors are always f32"
        },
    )
    pre: str | None = field(
        default=None,
        metadata={
            "help": "llama.cpp's name of the pre-tokenizer, where tokenizer.json does not tell it"
        },
    )

    def __post_init__(self) -> None:
        _check("type", self.type, ["auto", *integer_blocks(), "f32"])
        _check("float type", self.float_type, ["auto", *float_blocks()])


def _check(what: str, value: str, known: list[str]) -> None:
    if value in known:
        return
    near = difflib.get_close_matches(str(value).lower(), known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(sorted(near, key=known.index))}? " if near else ""
    raise ExportRefusedError(f"unknown {what} {value!r}: {hint}known are {', '.join(known)}")
