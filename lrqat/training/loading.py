"""The model of a run: loaded, and put on its grid whole or weight by weight."""

from pathlib import Path
from typing import Any

import torch
from transformers import set_seed

from lrqat.errors import ModelError
from lrqat.models import hub
from lrqat.models.adapters.merging import Adapters, folder_and_weight
from lrqat.models.from_gguf.folder import is_gguf
from lrqat.models.from_gguf.other_tokenizer import refuse_other_tokens
from lrqat.models.preparation import freeze_scales, prepare
from lrqat.models.source_facts import source_facts
from lrqat.models.streaming import load_streamed
from lrqat.models.trial import refuse_unrunnable
from lrqat.progress import tqdm
from lrqat.training.base_model import load_merged, open_base
from lrqat.training.calibration import calibration_batches, measure_inputs, quantize_activations
from lrqat.training.config import TrainConfig
from lrqat.training.data.blocks import TokenBlocks
from lrqat.training.model_settings import ModelSettings
from lrqat.training.plan import TrainingPlan, device_of, dtype_of


def load_original(settings: ModelSettings, plan: TrainingPlan) -> Any:
    """The model in full precision, on the device of the run. Raises ModelError."""
    return _runnable(load_merged(settings, plan.dtype).to(plan.device))


def load_whole(settings: ModelSettings) -> Any:
    """The model in full precision where the settings say, without a plan. Raises ModelError."""
    device = device_of(settings.device)
    dtype = dtype_of(settings.dtype, device)
    return _runnable(load_merged(settings, dtype).to(device))


def _runnable(model: Any) -> Any:
    refuse_unrunnable(model)
    return model


def load_tokenizer(settings: ModelSettings) -> Any:
    """The tokenizer of the model, or of an adapter that changed it, or that `--tokenizer` names.

    Raises:
        ModelError: it cannot be loaded, or is another model's.
    """
    own = Adapters.open(settings.adapter).tokenizer if settings.adapter else None
    name = settings.tokenizer or own or settings.source
    tokenizer = hub.load_tokenizer(name, trust_remote_code=settings.trust_remote_code)
    if settings.tokenizer:
        rows = open_base(settings).skeleton.get_input_embeddings().weight.shape[0]
        refuse_other_tokens(settings.tokenizer, tokenizer, settings.model, rows)
    return tokenizer


def load_prepared(
    config: TrainConfig, plan: TrainingPlan, blocks: TokenBlocks, original: Any = None
) -> Any:
    """The prepared model, with its activations fake-quantized if `config` asks for it.

    Args:
        config: the settings, resolved.
        plan: which weights go on which grid.
        blocks: text to measure importance and activation ranges on.
        original: the model in full precision, which becomes the prepared one; None reads its
            weights one at a time instead.

    Raises:
        UserError: settings that do not fit the model.
        ModelError: damaged weights, or files that cannot be read one weight at a time.
    """
    batches = calibration_batches(
        blocks, tokens=config.importance_tokens, batch_size=config.batch_size, device=plan.device
    )
    inputs = measure_inputs(original, plan.surgery, config, config.imatrix, batches)
    set_seed(config.seed)  # A and B depend on the seed alone, not on what ran before
    if original is not None:
        model = prepare(
            original,
            plan.surgery,
            config,
            importance=inputs.importance,
            directions=inputs.directions,
            progress=_preparing,
        )
    else:
        model = load_streamed(
            config.source,
            plan.surgery,
            config,
            dtype=plan.dtype,
            device=plan.device,
            importance=inputs.importance,
            progress=_preparing,
            trust_remote_code=config.trust_remote_code,
        )
        if model is None:
            raise not_one_by_one(config.model)
    if not config.trains_scales:
        freeze_scales(model)
    quantize_activations(model, plan.surgery, config, batches)
    return model


def not_one_by_one(model: str) -> ModelError:
    """Why a model cannot be streamed."""
    return ModelError(
        f"the weights of {model} are not stored one by one under the names that transformers gives "
        "them; train without --streamed"
    )


def _preparing(names: Any) -> Any:
    return tqdm(names, desc="preparing", unit="layer")


def describe_base(settings: ModelSettings) -> dict[str, Any]:
    """Name, revision, stored type, licence ... of the model, for the checkpoint."""
    name = settings.model
    stored = hub.load_config(settings.source, trust_remote_code=settings.trust_remote_code)
    return {
        **_public_name(name, getattr(stored, "_commit_hash", None)),
        **source_facts(name).to_manifest(),
        **_adapters(settings.adapter),
        "dtype": str(stored.dtype or torch.float32).removeprefix("torch."),
    }


def _adapters(entries: tuple[str, ...]) -> dict[str, str]:
    """The adapters without paths of this machine, those with a weight as NAME:WEIGHT."""
    named = [folder_and_weight(entry) for entry in entries]
    names = [Path(f).resolve().name + ("" if w == 1 else f":{w:g}") for f, w in named]
    return {"adapter": " + ".join(names)} if names else {}


def _public_name(name: str, revision: str | None) -> dict[str, str | None]:
    """Name and revision without a path of this machine.

    A snapshot of huggingface_hub's cache, models--OWNER--NAME/snapshots/REVISION, is the hub's.
    """
    if is_gguf(name):
        return {"name": Path(name).name, "revision": None}
    if not Path(name).is_dir():
        return {"name": name, "revision": revision}
    folder = Path(name).resolve()
    cached = folder.parent.parent.name
    if folder.parent.name == "snapshots" and cached.startswith("models--"):
        return {"name": cached.removeprefix("models--").replace("--", "/"), "revision": folder.name}
    return {"name": folder.name, "revision": revision}
