"""The checkpoint that a run will write, before it runs: `lrqat.models.planned_checkpoint`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lrqat.activations.table import find_activation_grid
from lrqat.evaluation.perplexity import RULE
from lrqat.models.planned_checkpoint import PlannedCheckpoint, planned_checkpoint
from lrqat.models.stored_model import StoredModel
from lrqat.models.streaming import read_generation_config
from lrqat.models.surgery import SurgeryPlan
from lrqat.training.calibration import rounded_inputs
from lrqat.training.config import TrainConfig
from lrqat.training.data.measured import evaluation_name
from lrqat.training.loading import describe_base, load_tokenizer

_SHA256 = "0" * 64


@contextmanager
def planned_outcome(
    config: TrainConfig, surgery: SurgeryPlan, stored: StoredModel
) -> Iterator[PlannedCheckpoint]:
    """The checkpoint of a run with these grids, as long as a file that is made of it.

    Args:
        config: the settings, resolved.
        surgery: which weights go on which grid.
        stored: the model's files.

    Raises:
        ModelError: see `planned_checkpoint`.
    """
    read_generation_config(stored.skeleton, config.source)
    tokenizer = load_tokenizer(config)
    with planned_checkpoint(
        stored,
        tokenizer,
        surgery,
        base_model=describe_base(config),
        training={"data_sha256": _sha256(config), "method": config.method},
        reference=_reference(config),
        activations=_activations(config, surgery),
    ) as checkpoint:
        yield checkpoint


def _sha256(config: TrainConfig) -> str | list[str | None] | None:
    """Of the form of `lrqat.training.data.corpus.sha256_of_data`."""
    found = [_SHA256 if Path(source.name).is_file() else None for source in config.sources]
    return found[0] if len(found) == 1 else found


def _reference(config: TrainConfig) -> dict[str, Any]:
    """What was measured, with numbers that stand for those to come."""
    measured = {"perplexity": 1.0, "standard_error": 1.0, "tokens": 1, "context": 1}
    return measured | {"rule": RULE, "data": evaluation_name(config), "data_sha256": _SHA256}


def _activations(config: TrainConfig, surgery: SurgeryPlan) -> dict[str, Any]:
    modules: dict[str, str] = {}
    if config.activations:
        grid = find_activation_grid(config.activations, surgery.grid.group_size)
        modules = dict.fromkeys(rounded_inputs(surgery, grid), grid.name)
    found = {"modules": modules, "kv_bits": config.kv_bits}
    return found if modules or config.kv_bits else {}
