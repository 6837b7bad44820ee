"""What every source gives: a model without weights, and its tensors one at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from lrqat.checkpoint.reader import QuantizedTensor


@dataclass(frozen=True)
class Read:
    """A tensor of a source.

    Attributes:
        said: how the source stores it, for people: "Q4_0", "GPTQ, 4 bits, groups of 128", "BF16".
        values: what it means by the source's own rule, in the source's own type.
        tensor: the source's integers and scales on a grid of ours; None if there are none, or no
            grid holds them.
        note: what was converted, or why no grid holds them.
    """

    said: str
    values: Tensor
    tensor: QuantizedTensor | None = None
    note: str = ""


def expert_name(stack: str, expert: int) -> str:
    """The weight of an expert, by the parameter that holds them all: as checkpoints call it."""
    return f"{stack}.{expert}"


class Source(Protocol):
    """A file or folder.

    Attributes:
        name: what the user calls it.
        kind: what it is, for people.
        skeleton: the model on the meta device; its configuration says what the weights are.
        dtype: the name of the type that its unquantized weights have.
        notes: what a user should know, one sentence each.
    """

    name: str
    kind: str
    skeleton: Any
    dtype: str
    notes: list[str]

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Parameter -> its shape, of all that are stored, in the order of the files.

        A stack of experts that is stored one by one has the `expert_name` of each in its place.
        """

    def read(self, parameter: str) -> Read:
        """One of them. Raises ModelError if it is damaged."""

    def tokenizer(self) -> Any:
        """The model's. Raises ModelError."""

    def read_generation_config(self) -> None:
        """Give `skeleton` the generation settings of the source, if it has any."""
