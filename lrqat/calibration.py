"""What is measured on the training text before training: importance of inputs, their ranges."""

from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrqat import imatrix_file, importance
from lrqat.activation_quantizer import attach
from lrqat.activation_ranges import calibrate
from lrqat.activations import find_activation_grid
from lrqat.config import TrainConfig
from lrqat.data import TokenBlocks
from lrqat.kv_cache import quantize_kv_cache
from lrqat.plan import TrainingPlan
from lrqat.range_init import RANGE_INITS
from lrqat.surgery import TABLE


def importance_of_inputs(
    model: Any, plan: TrainingPlan, config: TrainConfig, blocks: TokenBlocks
) -> dict[str, Tensor]:
    """Importance (in,) of the input channels of all projections, if the range search asks for it.

    Embeddings have no inputs, and stacks of experts do not show theirs: they are searched without.

    Raises:
        UserError: an importance file that does not belong to the model.
    """
    if not RANGE_INITS[config.range_init].weighted:
        return {}
    targets = plan.surgery.quantized.items()
    columns = {name: t.shape[1] for name, t in targets if t.kind != TABLE and t.count == 1}
    if config.imatrix:
        return imatrix_file.read(config.imatrix, columns)
    batches = _batches(blocks, config, plan)
    return importance.collect(
        model, columns, batches, lambda items: tqdm(items, desc="importance", unit="batch")
    )


def round_activations(
    model: Any, plan: TrainingPlan, config: TrainConfig, blocks: TokenBlocks
) -> None:
    """Round the inputs of quantised projections, and the keys and values, as `config` says.

    Args:
        model: the prepared model.
        plan: which projections.
        config: `activations`, `kv_bits` ...
        blocks: text to measure static ranges on.

    Raises:
        GridError: inputs that do not fit the activation grid.
        ModelError: a model whose attention does not let its keys and values be rounded.
    """
    if config.activations:
        grid = find_activation_grid(config.activations, plan.surgery.grid.group_size)
        targets = plan.surgery.quantized.items()
        names = [name for name, t in targets if t.kind != TABLE and t.count == 1]
        ranges = None
        if grid.static:
            batches = _batches(blocks, config, plan)
            ranges = calibrate(model, grid, names, batches, config.activation_range)
        attach(model, grid, names, ranges, learn_scale=config.learn_activation_ranges)
    if config.kv_bits:
        quantize_kv_cache(model, config.kv_bits)


def _batches(blocks: TokenBlocks, config: TrainConfig, plan: TrainingPlan) -> list[Tensor]:
    """The first `importance_tokens` tokens of the text: int64 (batch, tokens) each."""
    wanted = max(1, config.importance_tokens // config.sequence_length)
    tokens = torch.from_numpy(blocks.tokens[:wanted].astype("int64"))
    return list(tokens.to(plan.device).split(config.batch_size))
