"""The starts that there are, of the scales and of A and B: `--range-init` and `--lora-init`.

They are computed in `lrqat.init.range_init` and `lrqat.init.lora_init`, which say what they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lrqat.deferred import Deferred
from lrqat.grids.grid import Grid

if TYPE_CHECKING:
    from torch import Tensor

    from lrqat.grids.quantize import Scales
    from lrqat.init.input_directions import InputDirections
    from lrqat.layers.weight import QuantizedWeight

_SEARCH = "lrqat.init.scale_search:search"


@dataclass(frozen=True)
class RangeInit:
    """A start of the scales.

    Attributes:
        summary: one line for `--help` and the documentation.
        find: from rows of a weight, float32 (rows, in), their grid, and the importance (in,) of
            the input channels or None, to the scales, float32 (rows, groups) each, as stored.
        weighted: whether it wants the importance, so that it is measured or read.
    """

    summary: str
    find: "Callable[[Tensor, Grid, Tensor | None], Scales]"
    weighted: bool = False


RANGE_INITS: dict[str, RangeInit] = {
    "lp": RangeInit("least L4 error of the weights, by group", Deferred(_SEARCH, p=4.0)),
    "l2": RangeInit("least squared error of the weights, by group", Deferred(_SEARCH, p=2.0)),
    "importance": RangeInit(
        "least squared error, weighted by the inputs", Deferred(_SEARCH, p=2.0), weighted=True
    ),
    "minmax": RangeInit("the range of each group", Deferred("lrqat.init.scale_search:cover")),
}


@dataclass(frozen=True)
class LoRAInit:
    """A start of A and B.

    Attributes:
        summary: one line for `--help` and the documentation.
        learning_rate: a good peak rate of A and B for some hundred steps, in steps of the grid
            (`lrqat.training.rates`). The integers that `error`
            has chosen are soon lost in the noise of a rate that is good for A = 0.
        start: sets A and B of a layer that has just been made, from its full-precision weight
            (out, in) and the directions of its inputs; None leaves A zero and B random.
    """

    summary: str
    learning_rate: float
    start: "Callable[[QuantizedWeight, Tensor, InputDirections], None] | None" = None

    @property
    def directions(self) -> bool:
        """Whether it needs the directions of the inputs."""
        return self.start is not None


LORA_INITS: dict[str, LoRAInit] = {
    "random": LoRAInit("A zero, B random (the paper's)", 3e-3),
    "inputs": LoRAInit(
        "A zero, B along the leading directions of the inputs",
        3e-3,
        Deferred("lrqat.init.lora_init:along_inputs"),
    ),
    "error": LoRAInit(
        "so too, and A cancels the rounding error along them",
        7e-4,
        Deferred("lrqat.init.lora_init:cancel_error"),
    ),
}
