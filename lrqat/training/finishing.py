"""What becomes of a model between the last step and the measurement of what it has learned."""

from typing import Any

import torch

from lrqat.layers.embedding import LRQATEmbedding
from lrqat.layers.experts import LRQATExperts
from lrqat.layers.methods import METHODS
from lrqat.models.preparation import merge_and_round
from lrqat.training.calibration import calibration_batches, measure_inputs
from lrqat.training.config import TrainConfig
from lrqat.training.data.blocks import TokenBlocks
from lrqat.training.plan import TrainingPlan


def finish(model: Any, config: TrainConfig, plan: TrainingPlan, blocks: TokenBlocks) -> Any:
    """The model as it ships: on its grid whatever the method, in float32, in evaluation mode.

    Args:
        model: as training left it.
        config: the settings, resolved.
        plan: which weights go on which grid.
        blocks: text to measure importance on, for a method that rounds only now.
    """
    if not METHODS[config.method].rounds_inside:
        batches = calibration_batches(
            blocks,
            tokens=config.importance_tokens,
            batch_size=config.batch_size,
            device=plan.device,
        )
        inputs = measure_inputs(model, plan.surgery, config, config.imatrix, batches)
        model = merge_and_round(model, plan.surgery, config, inputs.importance)
    return _to_float32(model).eval()


def _to_float32(model: Any) -> Any:
    """Compute in float32 from here on: the reference is measured with the weights that ship."""
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *_buffers(module)]:
            if name != "phi" and tensor.is_floating_point():  # phi is decoded to float32 when used
                tensor.data = tensor.data.float()
        if isinstance(module, LRQATEmbedding | LRQATExperts):
            module.dtype = torch.float32
    return model


def _buffers(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(n, b) for n, b in module.named_buffers(recurse=False) if b.is_floating_point()]
