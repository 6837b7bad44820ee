"""What is measured on the training text before training: the inputs of projections, and ranges."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from lrqat.activations.grids import find_activation_grid
from lrqat.activations.kv_cache import quantize_kv_cache
from lrqat.activations.quantizer import attach
from lrqat.activations.ranges import calibrate
from lrqat.init import imatrix_file, input_statistics
from lrqat.init.importance import sum_of_squares
from lrqat.init.input_directions import InputDirections, find_directions, sketch_of
from lrqat.init.input_statistics import Statistic
from lrqat.init.lora_init import LORA_INITS
from lrqat.init.range_init import RANGE_INITS
from lrqat.layers.methods import METHODS
from lrqat.training.config import TrainConfig
from lrqat.training.data.documents import TokenBlocks
from lrqat.training.plan import TrainingPlan

_FEWEST_TOKENS = 2048  # a batch without gradients; smaller ones are slow


@dataclass(frozen=True)
class Inputs:
    """What is known of the inputs of projections, by module name; empty where nobody asks.

    Attributes:
        importance: (in,) mean square of each channel, for the search of ranges.
        directions: the leading directions, for the start of A and B.
    """

    importance: dict[str, Tensor] = field(default_factory=dict)
    directions: dict[str, InputDirections] = field(default_factory=dict)


def measure_inputs(
    model: Any, plan: TrainingPlan, config: TrainConfig, blocks: TokenBlocks
) -> Inputs:
    """Run the text through `model`, if the starts that `config` asks for need to know its inputs.

    Embeddings have no inputs, and stacks of experts do not show theirs: they start without.

    Raises:
        UserError: an importance file that does not belong to the model.
    """
    targets = plan.surgery.quantized.items()
    columns = {name: t.shape[1] for name, t in targets if t.is_layer}
    weighted, directed = RANGE_INITS[config.range_init].weighted, _directed(config)
    read = imatrix_file.read(config.imatrix, columns) if weighted and config.imatrix else None
    if not directed and (read is not None or not weighted):
        return Inputs(read or {})
    statistics: dict[str, Statistic] = {"squares": sum_of_squares}
    if directed:
        statistics["sketch"] = sketch_of(config.rank)
    batches = _batches(blocks, config, plan)
    means = input_statistics.collect(model, columns, batches, statistics, _bar)
    importance = read or (means["squares"] if weighted else {})
    if not directed:
        return Inputs(importance)
    return Inputs(importance, find_directions(means["sketch"], means["squares"], config.rank))


def _directed(config: TrainConfig) -> bool:
    """Whether A and B exist and start from directions."""
    method = METHODS[config.method]
    return method.low_rank and method.rounds_inside and LORA_INITS[config.lora_init].directions


def _bar(batches: Any) -> Any:
    return tqdm(batches, desc="inputs", unit="batch")


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
        names = [name for name, t in targets if t.is_layer]
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
    rows = max(config.batch_size, _FEWEST_TOKENS // config.sequence_length)
    return list(tokens.to(plan.device).split(rows))
