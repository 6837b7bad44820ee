"""Loading the model of a run and putting it on its grid, whole or weight by weight."""

from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import set_seed

from lrqat.errors import ModelError
from lrqat.models import hub
from lrqat.models.preparation import prepare
from lrqat.models.streaming import load_streamed
from lrqat.training.calibration import measure_inputs, round_activations
from lrqat.training.config import TrainConfig
from lrqat.training.data.documents import TokenBlocks
from lrqat.training.plan import TrainingPlan


def load_original(config: TrainConfig, plan: TrainingPlan) -> Any:
    """The model in full precision, on the device of the run. Raises ModelError."""
    return hub.load_model(
        config.model, dtype=plan.dtype, trust_remote_code=config.trust_remote_code
    ).to(plan.device)


def load_prepared(
    config: TrainConfig, plan: TrainingPlan, blocks: TokenBlocks, original: Any = None
) -> Any:
    """The prepared model, with its activations rounded if `config` asks for it.

    Args:
        config: the settings.
        plan: which weights go on which grid.
        blocks: text to measure importance and ranges on.
        original: the model in full precision, which becomes the prepared one; None reads its
            weights one at a time instead.

    Raises:
        UserError: settings that do not fit the model.
        ModelError: damaged weights, or files that cannot be read one weight at a time.
    """
    inputs = measure_inputs(original, plan, config, blocks)
    set_seed(config.seed)  # A and B depend on the seed alone, not on what ran before
    settings = config.settings()

    def progress(names: Any) -> Any:
        return tqdm(names, desc="preparing", unit="layer")

    if original is not None:
        model = prepare(
            original,
            plan.surgery,
            settings,
            importance=inputs.importance,
            directions=inputs.directions,
            progress=progress,
        )
    else:
        model = load_streamed(
            config.model,
            plan.surgery,
            settings,
            dtype=plan.dtype,
            device=plan.device,
            importance=inputs.importance,
            progress=progress,
            trust_remote_code=config.trust_remote_code,
        )
        if model is None:
            raise ModelError(
                f"the weights of {config.model} are not stored one by one under the names that "
                "transformers gives them; train without --streamed"
            )
    round_activations(model, plan, config, blocks)
    return model


def describe_base(config: TrainConfig) -> dict[str, Any]:
    """The model's name, revision and the type it is stored in, for the checkpoint."""
    stored = hub.load_config(config.model, trust_remote_code=config.trust_remote_code)
    return {
        "name": Path(config.model).name if Path(config.model).is_dir() else config.model,
        "revision": getattr(stored, "_commit_hash", None),
        "dtype": str(stored.dtype or torch.float32).removeprefix("torch."),
    }
