"""The fake-quant reference: a fused checkpoint as an ordinary PyTorch model with exact weights.

Every runtime is compared with this model. Its weights are `scale * q` of the checkpoint, which are
exact in float32, so in float32 it computes what the trained layers computed.
"""

from typing import Any

import numpy as np
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.pytorch_utils import Conv1D

from lrqat.activations.kv_cache import quantize_kv_cache
from lrqat.activations.quantizer import attach_described
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import CheckpointError, ModelError, refusing
from lrqat.models.configuration import build_config
from lrqat.models.float32 import in_float32
from lrqat.models.hub import meta_model
from lrqat.models.weight_misfits import refuse_not_finite


def load_reference(checkpoint: Checkpoint, dtype: torch.dtype = torch.float32) -> Any:
    """Load `checkpoint` as a Hugging Face causal LM in evaluation mode.

    Args:
        checkpoint: an opened fused checkpoint.
        dtype: compute type; anything but float32 rounds the weights.

    Raises:
        CheckpointError: the tensors do not fit the configuration.
        ModelError: a tensor is not finite.
    """
    values = checkpoint.config | {"dtype": str(dtype).removeprefix("torch.")}
    config = build_config(checkpoint.path, values)
    config._experts_implementation = "eager"  # as prepared models compute; others sum otherwise
    state = _quantized_state(checkpoint, config, dtype)
    for name in checkpoint.floating_names:
        state[name] = _tensor(checkpoint.floating(name)).to(dtype)
    with refusing(CheckpointError, f"{checkpoint.path} cannot be loaded", "train it again"):
        # The concrete class: unlike the Auto one, it loads a state dict without a folder or id.
        model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        model, info = model_class.from_pretrained(
            None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
        )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            raise CheckpointError(
                f"{checkpoint.path} does not fit its config.json: {kind.replace('_', ' ')} "
                f"{sorted(map(str, info[kind]))[:3]}"
            )
    refuse_not_finite(str(checkpoint.path), model.state_dict().items())
    return _with_rounded_activations(model.eval(), checkpoint)


def _with_rounded_activations(model: Any, checkpoint: Checkpoint) -> Any:
    """`model` rounding its activations, keys and values as it did in training, if it did."""
    record = checkpoint.manifest.get("activations")
    if record:
        tensors = {name: _tensor(checkpoint.floating(name)) for name in checkpoint.activation_names}
        attach_described(model, record, tensors)
        if record.get("kv_bits"):
            quantize_kv_cache(model, record["kv_bits"])
    return model


def torch_logits(model: Any) -> Any:
    """The `LogitsFunction` of `model`: int64 (n,) to float32 (n, vocabulary).

    It computes in float32, whatever type the model is in.
    """
    device = next(model.parameters()).device
    vocabulary = model.config.get_text_config().vocab_size

    @torch.inference_mode()
    def logits(tokens: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, Any]:
        if len(tokens) and tokens.max() >= vocabulary:
            raise ModelError(
                f"the tokenizer gives the id {tokens.max()} and the model's vocabulary has "
                f"{vocabulary}; they do not belong together"
            )
        ids = torch.from_numpy(np.ascontiguousarray(tokens)).to(device)[None]
        with in_float32(model):
            return model(input_ids=ids, use_cache=False).logits[0].float().cpu().numpy()

    return logits


def _quantized_state(
    checkpoint: Checkpoint, config: Any, dtype: torch.dtype
) -> dict[str, torch.Tensor]:
    """The dequantised weights under the names, and in the orientation, of the model's class."""
    skeleton = meta_model(config)
    modules = dict(skeleton.named_modules())
    state: dict[str, torch.Tensor] = {}
    stacks: dict[str, list[torch.Tensor]] = {}
    for name in checkpoint.quantized_names:
        weight = torch.from_numpy(checkpoint.quantized(name).dequantize()).to(dtype)
        stack, _, expert = name.rpartition(".")
        if expert.isdigit() and name not in modules:
            stacks.setdefault(stack, []).append(weight)
        else:
            transposed = isinstance(modules.get(name), Conv1D)
            state[f"{name}.weight"] = weight.T.contiguous() if transposed else weight
    return state | {name: torch.stack(weights) for name, weights in stacks.items()}


def _tensor(array: np.ndarray[Any, Any]) -> torch.Tensor:
    if array.dtype.name == "bfloat16":  # torch cannot read ml_dtypes' arrays
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)
