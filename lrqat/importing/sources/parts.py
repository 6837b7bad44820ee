"""The tensors that stand for the weight of a module, each of the form that is asked for or refused.

Files come from anybody: a tensor may be missing, of another type, or of another shape than the
others ask for. Layouts look at tensors through this alone.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from lrqat.errors import ModelError

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
FLOAT8 = (torch.float8_e4m3fn,)
WORDS, BYTES = (torch.int32,), (torch.uint8,)
INDICES = (torch.int32, torch.int64)


class Parts:
    """The tensors of one module, by the end of their names.

    Attributes:
        module: its name.
    """

    def __init__(self, module: str, load: Callable[[str], Tensor | None]) -> None:
        """`load` reads a tensor by its whole name; None: there is none."""
        self.module, self._load = module, load

    def get(self, end: str, dtypes: Collection[torch.dtype], *dims: int) -> Tensor | None:
        """A tensor, or None if there is none.

        Args:
            end: of its name, as in "qweight".
            dtypes: the types that it may have.
            dims: how many dimensions it may have, none of which is empty.

        Raises:
            ModelError: it has another type or shape.
        """
        found = self._load(f"{self.module}.{end}")
        if found is None:
            return None
        if found.dtype not in dtypes or found.ndim not in dims or not found.numel():
            kinds = " or ".join(name_of(dtype) for dtype in dtypes)
            raise self.refusal(
                f"{end} of {name_of(found.dtype)} {tuple(found.shape)}, where {kinds} of "
                f"{' or '.join(map(str, dims))} dimensions is expected"
            )
        return found

    def need(self, end: str, dtypes: Collection[torch.dtype], *dims: int) -> Tensor:
        """A tensor that has to be there. Raises ModelError as `get`, and if it is not."""
        found = self.get(end, dtypes, *dims)
        if found is None:
            raise self.refusal(f"no {end}")
        return found

    def number(self, end: str) -> float | None:
        """A floating-point number of the whole tensor that is positive; None: there is none."""
        found = self.get(end, FLOATS, 0, 1)
        if found is None:
            return None
        value = float(found.flatten()[0])
        if found.numel() != 1 or not 0 < value < float("inf"):
            raise self.refusal(f"{end} of {value:g} {tuple(found.shape)}, which is no scale")
        return value

    def refusal(self, what: str) -> ModelError:
        """The error for a module that has `what`."""
        return ModelError(f"{self.module} has {what}; use an intact copy")

    def group_size(self, columns: int, groups: int) -> int:
        """How many weights of a row share a scale. Raises ModelError if that is no whole number."""
        if columns % groups:
            raise self.refusal(f"{groups} groups for {columns} inputs")
        return columns // groups


def name_of(dtype: torch.dtype) -> str:
    """As people write it: "bfloat16"."""
    return str(dtype).removeprefix("torch.")
