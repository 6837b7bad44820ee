"""ggml's types by number and by name: gguf's own tables, and the types that they lack.

Source: ggml/include/ggml.h `enum ggml_type`, ggml/src/ggml-common.h (block structs).
"""

from dataclasses import dataclass

from gguf import GGML_QUANT_SIZES


@dataclass(frozen=True)
class GgmlType:
    """One type. It can stand where its number is wanted (`struct.pack`).

    Attributes:
        number: its place in `enum ggml_type`, which files hold.
        name: in capitals, without GGML_TYPE_.
        weights: weights of a block.
        nbytes: bytes of a block.
    """

    number: int
    name: str
    weights: int
    nbytes: int

    def blocks(self, in_features: int) -> int:
        """Blocks of a row. Raises ValueError if the row is not a whole number of them."""
        if in_features % self.weights:
            raise ValueError(f"{in_features} weights are not whole blocks of {self.weights}")
        return in_features // self.weights

    def __index__(self) -> int:
        """The number."""
        return self.number

    def __str__(self) -> str:
        """The name."""
        return self.name


# gguf 0.19 does not know it; llama.cpp does since 2026.
_NEWER = (GgmlType(42, "Q2_0", 64, 18),)

TYPES: dict[int, GgmlType] = {ggml.number: ggml for ggml in _NEWER} | {
    int(ggml): GgmlType(int(ggml), ggml.name, weights, nbytes)
    for ggml, (weights, nbytes) in GGML_QUANT_SIZES.items()
}


def ggml_type(name: str) -> GgmlType:
    """The type called `name`, in capitals or not. Raises KeyError for another name."""
    return {ggml.name: ggml for ggml in TYPES.values()}[name.upper()]
