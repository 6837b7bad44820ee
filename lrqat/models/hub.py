"""Loading models and tokenizers from a folder or from the Hugging Face hub, with clear refusals."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from lrqat.checkpoint import manifest
from lrqat.checkpoint.listed import listed_folder
from lrqat.errors import ModelError
from lrqat.models.tying import settle_tying
from lrqat.models.weight_misfits import quiet_loading, refuse_misfit, refuse_not_finite


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a causal language model; no weights are read.

    Args:
        name: a local folder, or an id on the Hugging Face hub.
        trust_remote_code: run Python code that the model brings.

    Raises:
        ModelError: nothing there, not a model, not a causal language model, or already quantised.
    """
    folder = Path(name)
    looks_local = folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not folder.is_dir():
        raise ModelError(
            f"no model folder at {name}; check the path, or give a hub id (owner/name)"
        )
    if looks_local and not (folder / "config.json").is_file():
        raise ModelError(f"{name} is not a Hugging Face model folder: it has no config.json")
    if (folder / manifest.FILE_NAME).is_file():
        raise ModelError(f"{name} is already a fused checkpoint; train from the model it came from")
    try:
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"cannot load the model {name!r}: {_first_line(error)} Check the name and the "
            "connection, or give a local folder"
        ) from None
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or trust_remote_code
    if not known or getattr(config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name} is a {config.model_type!r} model ({', '.join(config.architectures or [])}), "
            "not a causal language model; give one that AutoModelForCausalLM can load"
        )
    if getattr(config, "quantization_config", None):
        raise ModelError(f"{name} is quantised already; start from its floating-point original")
    return config


def load_model(name: str, *, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """A causal language model in `dtype`, in evaluation mode.

    `tie_word_embeddings` of its configuration is what the weights are.

    Raises:
        ModelError: no such model, or damaged files; tensors that are missing, or that are not the
            model's, with the cure; a tensor that is not finite.
    """
    config = load_config(name, trust_remote_code=trust_remote_code)
    try:
        with quiet_loading():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                name,
                config=config,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        raise ModelError(f"cannot load the weights of {name!r}: {_first_line(error)}") from None
    except SafetensorError as error:
        raise ModelError(f"a weight file of {name!r} is damaged: {_first_line(error)}") from None
    model, info = loaded
    refuse_misfit(name, model, info)
    refuse_not_finite(name, model.state_dict().items())
    settle_tying(model, model.config)
    return model.eval()


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a folder or hub id; of a fused checkpoint, from the files that it lists.

    Raises:
        ModelError: there is none, or it cannot be loaded.
    """
    if (Path(name) / manifest.FILE_NAME).is_file():
        with listed_folder(Path(name)) as view:
            return _load_tokenizer(view, trust_remote_code)
    return _load_tokenizer(name, trust_remote_code)


def _load_tokenizer(name: str | Path, trust_remote_code: bool) -> Any:
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"cannot load the tokenizer of {name}: {_first_line(error)}") from None


def meta_model(config: Any, *, trust_remote_code: bool = False) -> Any:
    """A model of `config` on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
