"""The language model inside a model that takes images or sound too, as a folder of its own.

transformers loads the whole; its decoder and head, under the names that they have where the text
model stands alone, are written to a folder in the user's cache (`lrqat.models.kept_folders`). Both
are run on a few tokens, and have to give the same logits.
"""

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from lrqat.errors import ModelError, refusing
from lrqat.models import hub
from lrqat.models.configuration import build_config
from lrqat.models.kept_folders import file_identity, kept_folder
from lrqat.models.streaming import unfilled_model
from lrqat.models.tying import settle_tying

# Text parts that transformers has no causal LM for, and whose layers are another model's: their
# positions in space and time are those of the text where there is text alone.
_SAME_LAYERS: dict[str, tuple[str, dict[str, Any]]] = {  # and what these layers always do
    "qwen2_vl_text": ("qwen2", {}),
    "qwen2_5_vl_text": ("qwen2", {}),
    "qwen3_vl_text": ("qwen3", {}),
    "qwen3_vl_moe_text": ("qwen3_moe", {"norm_topk_prob": True}),
}
_IN_SPACE = ("mrope_section", "mrope_interleaved")  # of rotary positions
# Of the configuration of the whole, what its text part may not say.
_SHARED = ("bos_token_id", "eos_token_id", "pad_token_id")
_TRIAL_TOKENS = 8


def text_folder(name: str, *, trust_remote_code: bool = False) -> Path:
    """The folder of the text model of `name`, with its tokenizer.

    Args:
        name: a local folder, or an id on the Hugging Face hub.
        trust_remote_code: run Python code that the model brings.

    Raises:
        ModelError: no such model, or no text model in it that transformers has; damaged files; or
            its logits are not those of the whole.
        OutputError: the folder cannot be written.
    """
    config = hub.read_any_config(name, trust_remote_code=trust_remote_code)
    if config.get_text_config() is config:
        raise ModelError(f"{name} is a text model itself; leave --text-model out")
    hub.refuse_quantized(name, config)
    local = _local(name)
    files = sorted(file for file in local.iterdir() if file.is_file())
    return kept_folder(
        "text",
        local.resolve().name,
        "\n".join(map(file_identity, files)),
        lambda folder: _write(local, config, trust_remote_code, folder),
    )


def _write(local: Path, config: Any, trust_remote_code: bool, folder: Path) -> None:
    alone = _config_alone(local, config)
    loader = _loader(local, config)
    whole = hub.load_weights(str(local), config, loader, "auto", trust_remote_code).eval()
    text = _text_of(local, whole, alone)
    _refuse_other_logits(local, whole, text)
    tokenizer = hub.load_tokenizer(local, trust_remote_code=trust_remote_code)
    with refusing(
        ModelError,
        f"cannot write the text model of {local}",
        "free space there, or name another cache with XDG_CACHE_HOME",
    ):
        tokenizer.save_pretrained(folder)
        text.save_pretrained(folder)


def _local(name: str) -> Path:
    if Path(name).is_dir():
        return Path(name)
    with refusing(
        ModelError, f"cannot download {name!r}", "check the connection, or give a local folder"
    ):
        return Path(snapshot_download(name))


def _loader(local: Path, config: Any) -> Any:
    if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        return AutoModelForImageTextToText
    if config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return AutoModelForCausalLM
    raise ModelError(
        f"{local} is a {config.model_type!r} model, which is no model of images and text; "
        "give a text model"
    )


def _config_alone(local: Path, config: Any) -> Any:
    """The configuration of the text model where it stands alone."""
    part = config.get_text_config()
    kind, always = _SAME_LAYERS.get(part.model_type, (part.model_type, {}))
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ModelError(
            f"the text part of {local} is {part.model_type!r}, which transformers has no causal "
            "language model of; give a text model"
        )
    values = part.to_dict()
    shared = config.to_dict()
    values |= {key: shared[key] for key in _SHARED if shared.get(key) is not None}
    if kind != part.model_type:
        known = CONFIG_MAPPING[kind]().to_dict()
        values = {key: value for key, value in values.items() if key in known} | always
        rope = values.get("rope_parameters") or {}
        values["rope_parameters"] = {k: v for k, v in rope.items() if k not in _IN_SPACE}
    alone = build_config(local, values | {"model_type": kind})
    alone.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]]
    return alone


def _text_of(local: Path, whole: Any, config: Any) -> Any:
    """The text model, with the weights of the whole."""
    embedding = whole.get_input_embeddings().weight
    text = unfilled_model(config, embedding.dtype, trust_remote_code=False)
    names = {module: name for name, module in text.named_modules()}
    parts = {
        names[text.get_decoder()]: whole.get_decoder(),
        names[text.get_output_embeddings()]: whole.get_output_embeddings(),
    }
    state = {
        f"{prefix}.{name}": tensor
        for prefix, part in parts.items()
        for name, tensor in part.state_dict().items()
    }
    try:
        text.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise _other_layers(local, text) from error
    if whole.get_output_embeddings().weight is embedding:
        text.get_output_embeddings().weight = text.get_input_embeddings().weight
    settle_tying(text, text.config)
    text.generation_config = whole.generation_config
    return text.eval()


@torch.no_grad()
def _refuse_other_logits(local: Path, whole: Any, text: Any) -> None:
    tokens = torch.arange(_TRIAL_TOKENS)[None]
    expected = whole(input_ids=tokens, use_cache=False).logits.float()
    found = text(input_ids=tokens, use_cache=False).logits.float()
    bound = torch.finfo(text.dtype).eps * expected.abs().max()
    if not (found - expected).abs().max() <= bound:
        raise _other_layers(local, text)


def _other_layers(local: Path, text: Any) -> ModelError:
    return ModelError(
        f"the text part of {local} is not a {type(text).__name__}: other layers, or other logits; "
        "give a text model"
    )
