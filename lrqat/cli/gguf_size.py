"""How large the GGUF file of a plan will be, and which of llama-quantize's is about as large."""

from dataclasses import dataclass
from typing import Any

from exporters.format import load_format
from lrqat.errors import RecipeError, UserError
from lrqat.models.surgery import SurgeryPlan
from lrqat.recipes.file_size import Nearest, nearest_recipe
from lrqat.training.base_model import open_base
from lrqat.training.config import TrainConfig
from lrqat.training.outcome import planned_outcome
from lrqat.training.recipes import model_shape

_HEAD = "output.weight"


@dataclass(frozen=True)
class GgufSize:
    """Bytes of a file that does not exist yet.

    Attributes:
        nbytes: of the whole file, exactly.
        nearest: llama-quantize's recipe with which the file is about as large, and the bytes of
            that file, which lacks our provenance (a kilobyte); None of a model that
            llama-quantize's rules are not known for.
    """

    nbytes: int
    nearest: Nearest | None

    def line(self) -> str:
        """For people."""
        said = f"{_megabytes(self.nbytes)} as GGUF"
        if self.nearest is None:
            return said
        theirs = f"{self.nearest.name}, {_megabytes(self.nearest.nbytes)}"
        return f"{said}; llama-quantize's nearest: {theirs}"

    def to_json(self) -> dict[str, Any]:
        """For machines."""
        near = self.nearest
        return {
            "bytes": self.nbytes,
            "nearest": near and {"recipe": near.name, "bytes": near.nbytes},
        }


def find_gguf_size(config: TrainConfig, surgery: SurgeryPlan) -> GgufSize | None:
    """The file that `lrqat export` makes of a run's checkpoint, or None where it makes none.

    The exporter plans it from the checkpoint that is to come (`lrqat.training.outcome`).

    Args:
        config: the settings of the run.
        surgery: which weights go on which grid.
    """
    config = config.resolved()
    try:
        load_format("gguf")
        from exporters import gguf

        stored = open_base(config)
        with planned_outcome(config, surgery, stored) as checkpoint:
            plan = gguf.plan(checkpoint)
            nbytes = gguf.file_bytes(plan)
    except UserError:  # another format's grids, a model without a form in GGUF, no gguf package
        return None
    return GgufSize(nbytes, _nearest(stored.skeleton, plan, nbytes, config))


def gguf_bytes(config: TrainConfig, surgery: SurgeryPlan) -> int | None:
    """Its bytes alone, see `lrqat.training.budget.FileBytes`."""
    found = find_gguf_size(config, surgery)
    return None if found is None else found.nbytes


def _nearest(model: Any, plan: Any, nbytes: int, config: TrainConfig) -> Nearest | None:
    """llama-quantize's recipe, with the bytes of its file, which has all else in common."""
    try:
        shape = model_shape(model)
        if shape.tied and any(tensor.source.name == _HEAD for tensor in plan.tensors):
            return None  # the weight is there twice, and llama-quantize gives it two types
        ours = (t for t in plan.tensors if t.source.origin.removesuffix(".weight") in shape.shapes)
        weights = sum(tensor.padded_bytes for tensor in ours)
        nearest = nearest_recipe(weights, shape, imatrix=bool(config.imatrix))
    except RecipeError:
        return None
    return Nearest(nearest.name, nbytes - weights + nearest.nbytes)


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:,.1f} MB"
