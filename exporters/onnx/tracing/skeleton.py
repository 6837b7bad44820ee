"""A Hugging Face model in the shape of the file to be: the real graph, placeholders for weights.

The model is built from its configuration without memory for weights. Every projection, and an
embedding that is not of the model's type, is replaced by a module of
`exporters.onnx.tracing.stand_ins`, whose weight lies as in the file (see
`exporters.onnx.weights.initializers`). The exporter traces with real tensors, so every weight gets
a placeholder: large ones are a single zero seen as many (stride 0); small ones are random and all
different, since the optimiser merges small initializers that are equal (`passes.simplify` keeps it
from folding them). No placeholder survives into the file: `passes.attach_weights` replaces every
one, and fails if one is missing.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from exporters.embedding_and_head import head_is_embedding
from exporters.onnx.activations import KERNEL
from exporters.onnx.plans import Plan, PlannedTensor
from exporters.onnx.tracing.stand_ins import (
    FloatEmbedding,
    FloatProjection,
    QuantizedEmbedding,
    QuantizedProjection,
    RoundedInput,
    TiedHead,
)
from exporters.onnx.tracing.trace import ATTENTION
from exporters.onnx.weights.initializers import FORMS
from exporters.onnx.weights.integers import grid_of
from exporters.onnx.weights.storage import code_bits
from lrqat.architectures import embedding_factor
from lrqat.config_values import config_values
from lrqat.errors import ExportRefusedError

# Below this many elements torch's optimiser may look at the values of an initializer.
_SMALL = 1 << 18
_TORCH = {
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.INT8: torch.int8,
}
_Planned = dict[str, PlannedTensor]


def build_skeleton(plan: Plan) -> Any:
    """The model of `plan.checkpoint`, in evaluation mode, with placeholders for weights.

    Raises:
        ExportRefusedError: transformers does not know the architecture, or the checkpoint's tensors
            are not the model's.
    """
    values = config_values(plan.checkpoint.config)
    values["tie_word_embeddings"] = tied = head_is_embedding(plan.checkpoint)
    try:
        config = AutoConfig.for_model(**(values | {"dtype": plan.options.float_type}))
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(
                config, **ATTENTION[str(plan.options.attention)]
            )
    except (KeyError, TypeError, ValueError) as error:
        raise ExportRefusedError(
            f"transformers cannot build the model of {plan.checkpoint.path}: {error}"
        ) from None
    planned = {tensor.name: tensor for tensor in plan.tensors}
    for tensor in plan.tensors:
        name = tensor.name.removesuffix(".weight")
        is_embedding = name == plan.embedding_and_head.embedding
        if tensor.form in _STAND_INS:
            stand_in = _STAND_INS[tensor.form](plan, tensor, planned, model.get_submodule(name))
            model.set_submodule(name, stand_in)
        elif is_embedding and tensor.dtype != plan.options.float_dtype:
            factor = _factor_of(model.get_submodule(name))
            model.set_submodule(name, FloatEmbedding(_placeholder(tensor), model.dtype, factor))
    if tied:
        bias = getattr(model.get_output_embeddings(), "bias", None)
        model.set_output_embeddings(
            TiedHead(model.get_input_embeddings(), bias, loaded=plan.loads_head)
        )
    for name, rounding in plan.roundings.items():
        if rounding.form != KERNEL:
            ranges = [planned.get(f"{name}.input.{part}") for part in ("scale", "zero_point")]
            parts = [None if tensor is None else _placeholder(tensor) for tensor in ranges]
            model.get_submodule(name).input = RoundedInput(rounding, *parts)
    _fill_parameters(model, planned)
    return model.eval()


def _quantized_projection(
    plan: Plan, tensor: PlannedTensor, planned: _Planned, old: Any
) -> nn.Module:
    parts = _placeholders(planned, tensor.source)
    scales = planned[f"{tensor.source}.weight_scale"].shape
    block = tensor.shape[0] // scales[0] if len(scales) == 2 else 0
    loaded = plan.loads_head and tensor.source == plan.embedding_and_head.head
    return QuantizedProjection(*parts, block, getattr(old, "bias", None), loaded=loaded)


def _embedding(plan: Plan, tensor: PlannedTensor, planned: _Planned, old: Any) -> nn.Module:
    bits = code_bits(grid_of(plan.checkpoint, tensor.source), old.embedding_dim)
    parts = _placeholders(planned, tensor.source)
    return QuantizedEmbedding(*parts, bits, old.weight.dtype, _factor_of(old))


def _factor_of(embedding: Any) -> float | None:
    """What an embedding multiplies its rows by, rounded as the model does."""
    factor = embedding_factor(embedding)
    return None if factor is None else float(torch.tensor(factor, dtype=embedding.weight.dtype))


def _float_projection(plan: Plan, tensor: PlannedTensor, planned: _Planned, old: Any) -> nn.Module:
    return FloatProjection(_placeholder(tensor), old.bias)


_STAND_INS: dict[str, Callable[[Plan, PlannedTensor, _Planned, Any], nn.Module]] = {
    "integers": _quantized_projection,
    "codes": _embedding,
    "linear": _float_projection,
}


def _placeholders(planned: _Planned, name: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Those of integers, scales and, where there are any, zero-points."""
    zero = planned.get(f"{name}.weight_zero_point")
    q, scale = (_placeholder(planned[f"{name}.{part}"]) for part in ("weight", "weight_scale"))
    return q, scale, None if zero is None else _placeholder(zero)


def _fill_parameters(model: nn.Module, planned: _Planned) -> None:
    """Give what remains of the model's weights a placeholder; tied ones stay one tensor."""
    made: dict[int, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if id(parameter) not in made:
            if name not in planned:
                raise ExportRefusedError(f"the checkpoint has no tensor {name!r} for its model")
            placeholder = _placeholder(planned[name])
            made[id(parameter)] = nn.Parameter(placeholder, requires_grad=False)
        _set(model, name, made[id(parameter)])
    for name, _ in list(model.named_buffers()):
        if name in planned and planned[name].form == "float":  # a weight in all but name
            _set(model, name, _placeholder(planned[name]))


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    module, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(module), leaf, tensor)


def _traced_type(tensor: PlannedTensor) -> torch.dtype:
    """The type of a placeholder; passes.attach_weights gives the tensor its own."""
    if FORMS[tensor.form].centred:  # integers of all widths
        return torch.int8
    if tensor.form == "codes" and tensor.dtype == ir.DataType.UINT8:  # several a byte
        return torch.uint8
    # Zero-points of activations, single numbers, would be equal too often as int8.
    return _TORCH.get(tensor.dtype, torch.float32)


def _placeholder(tensor: PlannedTensor) -> Tensor:
    dtype = _traced_type(tensor)
    elements = int(np.prod(tensor.shape))
    if elements > _SMALL:
        return torch.zeros((), dtype=dtype).expand(tensor.shape)
    seed = np.frombuffer(tensor.name.encode(), np.uint8)
    generator = np.random.default_rng(seed)
    values = generator.integers(-8, 8, tensor.shape) if not dtype.is_floating_point else None
    numbers = generator.normal(size=tensor.shape) if values is None else values
    return torch.from_numpy(np.asarray(numbers)).to(dtype)
