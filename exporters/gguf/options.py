"""What a user may choose about a GGUF export."""

from dataclasses import dataclass, field

from exporters.gguf.blocks import float_blocks, integer_blocks
from exporters.gguf.tensors.rounded_values import value_blocks
from lrqat.byte_sizes import parse_size
from lrqat.errors import ExportRefusedError, did_you_mean


@dataclass(frozen=True)
class Options:
    """Choices; the defaults are the smallest exact file.

    Raises:
        ExportRefusedError: an unknown type, or a size that is none.
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
            "help": "type of unquantized matrices: auto (nothing is lost: f16 where every "
            "value survives, for an untied embedding also bf16, else f32), f16, bf16 or f32; "
            "vectors are always f32"
        },
    )
    embedding_type: str = field(
        default="auto",
        metadata={
            "help": "type of an embedding that was not trained on a grid: auto (as --float-type), "
            "f16, bf16, f32, or rounded to q8_0 or q6_k"
        },
    )
    head_type: str = field(
        default="auto",
        metadata={
            "help": "type of an output head that was not trained on a grid: as --embedding-type, "
            "which also decides for a head that is the embedding"
        },
    )
    pre: str | None = field(
        default=None,
        metadata={
            "help": "llama.cpp's name of the pre-tokenizer, where tokenizer.json does not tell it"
        },
    )
    converter: str | None = field(
        default=None,
        metadata={
            "help": "source tree of llama.cpp whose own converter lays out a model that has no "
            "entry here; what was trained is still stored bit for bit"
        },
    )

    split_max_size: str | None = field(
        default=None,
        metadata={
            "help": "write several files with at most so many bytes of tensors each: 2G, 500M or "
            "a number; llama.cpp is given the first"
        },
    )
    modelfile: bool = field(
        default=False,
        metadata={
            "help": "also write a Modelfile for Ollama beside the file: chat template, ends of "
            "answers, sampling"
        },
    )

    def __post_init__(self) -> None:
        _check("type", self.type, ["auto", *integer_blocks(), "f32"])
        _check("float type", self.float_type, ["auto", *float_blocks()])
        if self.split_max_size is not None:
            parse_size(self.split_max_size, "--split-max-size")
        for name in ("split_max_size", "converter"):
            if self.modelfile and getattr(self, name) is not None:
                raise ExportRefusedError(
                    f"--modelfile is of a model in one file that is laid out here, not with "
                    f"--{name.replace('_', '-')}; leave one of them out"
                )
        for what in ("embedding_type", "head_type"):
            asked = getattr(self, what)
            _check(what.replace("_", " "), asked, ["auto", *value_blocks()])
            if self.type == "f32" and asked not in ("auto", "f32"):
                raise ExportRefusedError(
                    f"type f32 makes every tensor f32; leave {what} {asked} away"
                )


def _check(what: str, value: str, known: list[str]) -> None:
    if value in known:
        return
    hint = did_you_mean(value, known)
    raise ExportRefusedError(f"unknown {what} {value!r}: {hint}known are {', '.join(known)}")
