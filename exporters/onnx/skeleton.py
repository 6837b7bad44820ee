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
import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from exporters.onnx.planning import Plan, PlannedTensor
from exporters.onnx.twins import LinearTwin, QuantizedTwin, TiedHeadTwin
from lrqat.errors import ExportRefusedError

# Below this many elements torch's optimiser may look at the values of an initializer.
_SMALL = 1 << 18


def build_skeleton(plan: Plan) -> Any:
    """The model of `plan.checkpoint`, in evaluation mode, with stand-in weights.

    Raises:
        ExportRefusedError: transformers does not know the architecture, or the checkpoint's tensors
            are not the model's.
    """
    values = {k: v for k, v in plan.checkpoint.config.items() if k != "quantization_config"}
    try:
        config = AutoConfig.for_model(**(values | {"dtype": "float32"}))
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
        q = _stand_in(planned[f"{name}.weight"], torch.int8)
        scale = _stand_in(planned[f"{name}.weight_scale"], torch.float32)
        block = plan.checkpoint.grid(name).group_size or 0
        model.set_submodule(name, QuantizedTwin(q, scale, block, bias))
    for tensor in plan.tensors:
        if tensor.kind == "linear":
            name = tensor.source.removesuffix(".weight")
            twin = LinearTwin(_stand_in(tensor, torch.float32), model.get_submodule(name).bias)
            model.set_submodule(name, twin)
    _fill_parameters(model, planned)
    return model.eval()


def _fill_parameters(model: nn.Module, planned: dict[str, PlannedTensor]) -> None:
    """Give every remaining parameter a stand-in; tied ones stay one tensor."""
    made: dict[int, nn.Parameter] = {}
    for name, parameter in list(model.named_parameters(remove_duplicate=False)):
        if id(parameter) not in made:
            if name not in planned:
                raise ExportRefusedError(f"the checkpoint has no tensor {name!r} for its model")
            stand_in = _stand_in(planned[name], torch.float32)
            made[id(parameter)] = nn.Parameter(stand_in, requires_grad=False)
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, made[id(parameter)])


def _stand_in(tensor: PlannedTensor, dtype: torch.dtype) -> Tensor:
    elements = int(np.prod(tensor.shape))
    if elements > _SMALL:
        return torch.zeros((), dtype=dtype).expand(tensor.shape)
    seed = np.frombuffer(tensor.name.encode(), np.uint8)
    generator = np.random.default_rng(seed)
    values = generator.integers(-8, 8, tensor.shape) if dtype == torch.int8 else None
    numbers = generator.normal(size=tensor.shape) if values is None else values
    return torch.from_numpy(np.asarray(numbers)).to(dtype)
