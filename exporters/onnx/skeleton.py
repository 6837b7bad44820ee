"""A Hugging Face model in the shape of the file to be: the real graph, stand-in weights.

The model is built from its configuration without memory for weights. Every projection is replaced
by a twin whose weight lies as in the file (see `exporters.onnx.weights`). Stand-ins are needed
because the exporter traces with real tensors: large ones are a single zero seen as many (stride 0);
small ones are random and all different, since the optimiser merges small initializers that are
equal (`passes.simplify` keeps it from folding them). No stand-in survives into the file:
`passes.attach_weights` replaces every one, and fails if one is missing.
"""

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from exporters.onnx.activations import KERNEL
from exporters.onnx.planning import Plan, PlannedTensor
from exporters.onnx.rounding import RoundedInput
from exporters.onnx.twins import LinearTwin, QuantizedTwin, TiedHeadTwin
from lrqat.errors import ExportRefusedError

# Below this many elements torch's optimiser may look at the values of an initializer.
_SMALL = 1 << 18
# Integers of all widths are int8 while tracing, and zero-points of activations, single numbers of
# which there are too few in int8, float32; passes.attach_weights gives them their own type.
_TORCH = {
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.INT2: torch.int8,
    ir.DataType.INT4: torch.int8,
    ir.DataType.INT8: torch.int8,
}


def build_skeleton(plan: Plan) -> Any:
    """The model of `plan.checkpoint`, in evaluation mode, with stand-in weights.

    Raises:
        ExportRefusedError: transformers does not know the architecture, or the checkpoint's tensors
            are not the model's.
    """
    values = {k: v for k, v in plan.checkpoint.config.items() if k != "quantization_config"}
    try:
        config = AutoConfig.for_model(**(values | {"dtype": plan.options.float_type}))
        with init_empty_weights(include_buffers=False):
            model = AutoModelForCausalLM.from_config(config)
    except (KeyError, TypeError, ValueError) as error:
        raise ExportRefusedError(
            f"transformers cannot build the model of {plan.checkpoint.path}: {error}"
        ) from None
    if config.get_text_config().tie_word_embeddings:
        model.set_output_embeddings(TiedHeadTwin(model.get_input_embeddings()))
    planned = {tensor.name: tensor for tensor in plan.tensors}
    for name in plan.checkpoint.quantized_names:
        bias = getattr(model.get_submodule(name), "bias", None)
        q, scale = (_stand_in(planned[f"{name}.{part}"]) for part in ("weight", "weight_scale"))
        zero = planned.get(f"{name}.weight_zero_point")
        zero_point = None if zero is None else _stand_in(zero)
        block = plan.checkpoint.grid(name).group_size or 0
        model.set_submodule(name, QuantizedTwin(q, scale, zero_point, block, bias))
    for tensor in plan.tensors:
        if tensor.kind == "linear":
            name = tensor.source.removesuffix(".weight")
            twin = LinearTwin(_stand_in(tensor), model.get_submodule(name).bias)
            model.set_submodule(name, twin)
    for name, rounding in plan.roundings.items():
        if rounding.form != KERNEL:
            ranges = [planned.get(f"{name}.input.{part}") for part in ("scale", "zero_point")]
            parts = [None if tensor is None else _stand_in(tensor) for tensor in ranges]
            model.get_submodule(name).input = RoundedInput(rounding, *parts)
    _fill_parameters(model, planned)
    return model.eval()


def _fill_parameters(model: nn.Module, planned: dict[str, PlannedTensor]) -> None:
    """Give every remaining parameter a stand-in; tied ones stay one tensor."""
    made: dict[int, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if id(parameter) not in made:
            if name not in planned:
                raise ExportRefusedError(f"the checkpoint has no tensor {name!r} for its model")
            stand_in = _stand_in(planned[name])
            made[id(parameter)] = nn.Parameter(stand_in, requires_grad=False)
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, made[id(parameter)])


def _stand_in(tensor: PlannedTensor) -> Tensor:
    dtype = _TORCH.get(tensor.dtype, torch.float32)
    elements = int(np.prod(tensor.shape))
    if elements > _SMALL:
        return torch.zeros((), dtype=dtype).expand(tensor.shape)
    seed = np.frombuffer(tensor.name.encode(), np.uint8)
    generator = np.random.default_rng(seed)
    values = generator.integers(-8, 8, tensor.shape) if dtype == torch.int8 else None
    numbers = generator.normal(size=tensor.shape) if values is None else values
    return torch.from_numpy(np.asarray(numbers)).to(dtype)
