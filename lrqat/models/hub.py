"""Loading models and tokenizers of folders, GGUF files and the hub, with clear refusals."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.hub import cached_file

from lrqat.checkpoint import manifest
from lrqat.checkpoint.listed import listed_folder
from lrqat.errors import ModelError, refusing
from lrqat.foreign_files import read_json, refuse_irregular
from lrqat.models.causes import adapter, cause_of_code, cause_of_model, cause_of_tokenizer
from lrqat.models.configuration import refuse_unbuildable, with_own_attention
from lrqat.models.from_gguf.folder import folder_of, is_gguf, tokenizer_folder
from lrqat.models.tying import settle_tying
from lrqat.models.weight_misfits import quiet_loading, refuse_misfit, refuse_not_finite

_CAUSAL = "one that AutoModelForCausalLM can load"
_WITH_TEXT = "--text-model for the language model inside it"


def load_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a causal language model to train; no weights are read.

    Args:
        name: a local folder, a GGUF file, or an id on the Hugging Face hub.
        trust_remote_code: run Python code that the model brings.

    Raises:
        ModelError: nothing there, not a model, not a causal language model, or already quantised.
    """
    config = read_config(name, trust_remote_code=trust_remote_code)
    refuse_quantized(name, config)
    return config


def refuse_quantized(name: str, config: Any) -> None:
    """Raise ModelError for a model whose files hold quantised weights."""
    if getattr(config, "quantization_config", None):
        raise ModelError(
            f"{name} is quantised already: train its floating-point original, or take it over as "
            f"it is with `lrqat import {name} --output FOLDER`"
        )


def read_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration of a causal language model, quantised or not; no weights are read.

    Args:
        name: a local folder, a GGUF file, or an id on the Hugging Face hub.
        trust_remote_code: run Python code that the model brings.

    Raises:
        ModelError: nothing there, not a model, or not a causal language model.
    """
    config = read_any_config(name, trust_remote_code=trust_remote_code)
    known = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or trust_remote_code
    if not known or getattr(config, "is_encoder_decoder", False):
        inside = config.get_text_config() is not config
        raise ModelError(
            f"{name} is a {config.model_type!r} model ({config.architectures}), not a causal "
            f"language model; give {_WITH_TEXT if inside else _CAUSAL}"
        )
    return config


def read_any_config(name: str, *, trust_remote_code: bool = False) -> Any:
    """The configuration of any model; no weights are read. Arguments and errors as `read_config`.

    It need not be a causal language model.
    """
    name = str(folder_of(name))
    folder = Path(name)
    looks_local = folder.exists() or name.startswith((".", "/", "~")) or name.count("/") > 1
    if looks_local and not folder.is_dir():
        raise ModelError(
            f"no model folder at {name}; check the path, or give a hub id (owner/name) or a .gguf "
            "file"
        )
    if looks_local and not (folder / "config.json").is_file():
        raise ModelError(
            f"{name} is not a Hugging Face model folder: {adapter(name) or 'it has no config.json'}"
        )
    if (folder / manifest.FILE_NAME).is_file():
        raise ModelError(f"{name} is already a fused checkpoint; train from the model it came from")
    with refusing(
        ModelError,
        f"cannot load the model {name!r}",
        "correct its config.json, or use an intact copy"
        if looks_local
        else "check the name and the connection, or give a local folder",
        cause=cause_of_model(name),
    ):
        file = Path(str(cached_file(name, "config.json")))
        refuse_irregular(file.parent, ModelError)
        values = read_json(file)
        if not trust_remote_code:  # whose code may do as it likes anyway
            refuse_unbuildable(name, values)
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)
    return with_own_attention(config)


def load_model(name: str, *, dtype: torch.dtype, trust_remote_code: bool = False) -> Any:
    """A causal language model in `dtype`, in evaluation mode.

    `tie_word_embeddings` of its configuration is what the weights are.

    Raises:
        ModelError: no such model, or damaged files; tensors that are missing, or that are not the
            model's, with the cure; a tensor that is not finite.
    """
    name = str(folder_of(name))
    config = load_config(name, trust_remote_code=trust_remote_code)
    model = load_weights(name, config, AutoModelForCausalLM, dtype, trust_remote_code)
    settle_tying(model, model.config)
    return model.eval()


def load_weights(
    name: str, config: Any, loader: Any, dtype: torch.dtype | str, trust_remote_code: bool
) -> Any:
    """A model with exactly the weights of its files. Raises ModelError, as `load_model`.

    Args:
        name: a local folder, or an id on the hub.
        config: of the model.
        loader: an auto class of transformers.
        dtype: "auto" for that of the files.
        trust_remote_code: run Python code that the model brings.
    """
    remedy = "use an intact copy of the model"
    what, cause = f"cannot load the weights of {name!r}", cause_of_model(name)
    with refusing(ModelError, what, remedy, cause=cause), quiet_loading():
        try:
            loaded: Any = loader.from_pretrained(
                name,
                config=config,
                dtype=dtype,
                trust_remote_code=trust_remote_code,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
        except SafetensorError as error:
            raise ModelError(f"a weight file of {name!r} is damaged: {error}; {remedy}") from None
    model, info = loaded
    refuse_misfit(name, model, info)
    refuse_not_finite(name, model.state_dict().items())
    return model


def load_tokenizer(name: str | Path, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a folder, GGUF file or hub id; of a fused checkpoint, of listed files.

    Raises:
        ModelError: there is none, or it cannot be loaded.
    """
    if is_gguf(name):
        with tokenizer_folder(name) as made:
            return _load_tokenizer(made, trust_remote_code=False)
    if (Path(name) / manifest.FILE_NAME).is_file():
        with listed_folder(Path(name)) as view:
            return _load_tokenizer(view, trust_remote_code)
    return _load_tokenizer(name, trust_remote_code)


def _load_tokenizer(name: str | Path, trust_remote_code: bool) -> Any:
    if Path(name).is_dir():
        refuse_irregular(Path(name), ModelError)
    with refusing(
        ModelError,
        f"cannot load the tokenizer of {name}",
        "give a model with the tokenizer files that transformers saves",
        cause=cause_of_tokenizer(name),
    ):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
        tokenizer.decode(tokenizer.encode("a"))  # some settings are looked at only now
        return tokenizer


def meta_model(config: Any, *, trust_remote_code: bool = False) -> Any:
    """A model of `config` on the meta device: names and shapes, no memory.

    Raises:
        ModelError: the configuration has a value that its architecture refuses.
    """
    with (
        refusing(
            ModelError,
            f"the configuration of this {config.model_type!r} model cannot be built",
            "correct config.json, or use an intact copy of the model",
            cause=cause_of_code,
        ),
        torch.device("meta"),
    ):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
