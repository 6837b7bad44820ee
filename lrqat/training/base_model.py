"""The model that a run starts from, with its adapters: described by its files, or loaded."""

from typing import Any

import torch

from lrqat.models import hub
from lrqat.models.adapters.merging import Adapters
from lrqat.models.stored_model import StoredModel, open_model
from lrqat.training.model_settings import ModelSettings


def open_base(settings: ModelSettings) -> StoredModel:
    """The model as its files, and those of its adapters, describe it. Raises ModelError."""
    stored = open_model(settings.source, trust_remote_code=settings.trust_remote_code)
    if settings.adapter:
        Adapters.open(settings.adapter).fit(stored.skeleton)
    return stored


def load_merged(settings: ModelSettings, dtype: torch.dtype) -> Any:
    """The model with its adapters, if it has any, in full precision. Raises ModelError."""
    trust = settings.trust_remote_code
    model = hub.load_model(settings.source, dtype=dtype, trust_remote_code=trust)
    if settings.adapter:
        Adapters.open(settings.adapter).merge(model)
    return model
