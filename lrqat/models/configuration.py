"""Configurations of models, which others wrote: what transformers makes of them, within limits."""

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from lrqat.config_bounds import refuse_absurd_counts
from lrqat.config_values import config_values
from lrqat.errors import ModelError, refusing
from lrqat.limited_process import failure_of

# transformers' own. Other names are kernels that are not installed here, or that it would fetch
# from the hub and run; all of them compute the same.
_ATTENTION = ("eager", "sdpa")
# What weights can be stored in to start from; fp8 needs the scales of its quantization.
_DTYPES = ("float32", "bfloat16", "float16", "float64")
_SECONDS = 5  # to build a model on the meta device; the largest known take less than one


def build_config(name: object, values: dict[str, Any]) -> Any:
    """The configuration that config.json's `values` are, but for its quantization.

    Args:
        name: where they come from, for messages.
        values: keys and values of the file.

    Raises:
        ModelError: they are none that transformers takes.
    """
    refuse_unbuildable(name, values)
    with refusing(
        ModelError, f"config.json of {name} is not a model configuration", "use an intact copy"
    ):
        return with_own_attention(AutoConfig.for_model(**config_values(values)))


def with_own_attention(config: Any) -> Any:
    """`config`, and in it those of its parts, with an attention of transformers' own."""
    if config._attn_implementation not in (None, *_ATTENTION):
        config._attn_implementation = None
    for part in config.sub_configs:
        if getattr(config, part, None) is not None:
            with_own_attention(getattr(config, part))
    return config


def refuse_unbuildable(name: object, values: dict[str, Any]) -> None:
    """Refuse a configuration of which no model can be built in seconds and half a gigabyte.

    Names and shapes only: weights take no memory there.

    Raises:
        ModelError: layers or experts without end, or another number of which transformers makes
            objects; a type that no weights are stored in. What it refuses at once is left to
            whoever builds the model, who can say more.
    """
    refuse_absurd_counts(name, values)
    _refuse_dtype(name, values)
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return
    # Imported here, for the copy has seconds only. A model of another task has no such class.
    MODEL_FOR_CAUSAL_LM_MAPPING.get(CONFIG_MAPPING[kind], None)

    def build() -> None:
        torch.set_num_threads(1)  # the threads that there were are not in the copy
        config = with_own_attention(AutoConfig.for_model(**config_values(values)))
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(config)

    failure = failure_of(build, _SECONDS)
    if failure is not None and failure.startswith("it "):
        raise ModelError(
            f"config.json of {name} asks for a model that cannot be built ({failure}); use an "
            "intact copy of the model"
        )


def _refuse_dtype(name: object, values: dict[str, Any]) -> None:
    dtype = values.get("dtype", values.get("torch_dtype"))
    if isinstance(dtype, str) and dtype.removeprefix("torch.") not in _DTYPES:
        raise ModelError(
            f"config.json of {name} says that its weights are {dtype!r:.80}, which is none of "
            f"{', '.join(_DTYPES)}; start from the original, or correct the file if it is wrong"
        )
