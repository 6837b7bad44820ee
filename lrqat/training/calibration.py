"""What is measured on the training text before training: inputs of projections, their ranges."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lrqat.activations.kv_cache import quantize_kv_cache
from lrqat.activations.quantizer import attach
from lrqat.activations.ranges import calibrate
from lrqat.activations.table import ActivationGrid, find_activation_grid
from lrqat.architectures import is_output_head
from lrqat.init import imatrix_file, input_statistics
from lrqat.init.importance import sum_of_squares
from lrqat.init.input_directions import InputDirections, find_directions, sketch_of
from lrqat.init.input_statistics import Statistic
from lrqat.init.starts import LORA_INITS, RANGE_INITS
from lrqat.layers.methods import METHODS
from lrqat.models.preparation_settings import Settings
from lrqat.models.surgery import SurgeryPlan
from lrqat.progress import tqdm
from lrqat.training.data.blocks import TokenBlocks
from lrqat.training.settings import ActivationSettings

_FEWEST_TOKENS = 2048  # a batch without gradients; smaller ones are slow
_REST_TOKENS = 4096  # that the inputs are measured on which a file of importance has not


@dataclass(frozen=True)
class Inputs:
    """What is known of the inputs of projections, by module name; empty where nobody asks.

    Attributes:
        importance: (in,) mean square of each channel, for the search of scales.
        directions: the leading directions, for the start of A and B.
    """

    importance: dict[str, Tensor] = field(default_factory=dict)
    directions: dict[str, InputDirections] = field(default_factory=dict)


def calibration_batches(
    blocks: TokenBlocks, *, tokens: int, batch_size: int, device: str
) -> list[Tensor]:
    """The start of the training text, to measure on.

    Args:
        blocks: the text.
        tokens: how many at most; one block at least is taken.
        batch_size: blocks in a batch at least.
        device: where the batches go.

    Returns:
        int64 (batch, block length) each.
    """
    length = blocks.tokens.shape[1]
    start = torch.from_numpy(blocks.tokens[: max(1, tokens // length)].astype("int64"))
    rows, _ = batch_shape(tokens=tokens, batch_size=batch_size, length=length)
    return list(start.to(device).split(rows))


def batch_shape(*, tokens: int, batch_size: int, length: int) -> tuple[int, int]:
    """Shape (batch, block length) of what `calibration_batches` gives."""
    rows = max(batch_size, _FEWEST_TOKENS // length)
    return min(rows, max(1, tokens // length)), length


def measure_inputs(
    model: Any,
    surgery: SurgeryPlan,
    weights: Settings,
    imatrix: str | None,
    batches: Sequence[Tensor],
) -> Inputs:
    """Run the text through `model`, if the starts in `weights` need to know its inputs.

    A tied embedding is measured as the head that it is too. Other embeddings have no inputs, and
    stacks of experts do not show theirs: they start without. A file of importance has projections,
    and seldom the head: what it lacks is measured.

    Args:
        model: whole, in full precision; None if nothing can be measured.
        surgery: which projections.
        weights: `range_init`, `lora_init`, `method` and `rank`, resolved.
        imatrix: file to read the importance from instead, or None.
        batches: text, from `calibration_batches`.

    Raises:
        UserError: an importance file that does not belong to the model.
    """
    shown = _shown(surgery)
    columns = {name: surgery.quantized[name].shape[1] for name in shown}
    weighted, directed = RANGE_INITS[weights.range_init].weighted, is_directed(weights)
    read: dict[str, Tensor] = {}
    if weighted and imatrix:
        layers = {name: n for name, n in columns.items() if surgery.quantized[name].is_layer}
        heads = [name for name in layers if is_output_head(name)]  # llama-imatrix leaves it out
        read = imatrix_file.read(imatrix, layers, optional=heads)
    if read and not directed:
        shown = {name: module for name, module in shown.items() if name not in read}
        batches = batches[: max(1, _REST_TOKENS // batches[0].numel())] if batches else batches
    if model is None or not shown or not is_measured(weights):
        return Inputs(read)
    statistics: dict[str, Statistic] = {"squares": sum_of_squares}
    if directed:
        statistics["sketch"] = sketch_of(weights.rank)
    measured = input_statistics.collect(model, shown.values(), batches, statistics, _bar)
    means = {
        statistic: {name: of_module[module] for name, module in shown.items()}
        for statistic, of_module in measured.items()
    }
    importance = (means["squares"] if weighted else {}) | read
    if not directed:
        return Inputs(importance)
    return Inputs(importance, find_directions(means["sketch"], means["squares"], weights.rank))


def _shown(surgery: SurgeryPlan) -> dict[str, str]:
    """Weight -> the layer whose inputs it meets: its own, or for a tied embedding the head."""
    targets = surgery.quantized.items()
    return {name: t.tied_to or name for name, t in targets if t.is_layer or t.tied_to}


def is_measured(weights: Settings) -> bool:
    """Whether the model has to read text before it is put on its grid, if it is ever whole.

    With a file of importance too: it lacks the head.
    """
    return is_directed(weights) or RANGE_INITS[weights.range_init].weighted


def is_directed(weights: Settings) -> bool:
    """Whether A and B exist and start from directions."""
    method = METHODS[weights.method]
    return method.low_rank and method.rounds_inside and LORA_INITS[weights.lora_init].directions


def _bar(batches: Any) -> Any:
    return tqdm(batches, desc="inputs", unit="batch")


def rounded_inputs(surgery: SurgeryPlan, grid: ActivationGrid) -> list[str]:
    """The layers whose inputs are rounded: projections, and the head where llama.cpp does it.

    A rounding of the last hidden states goes into the logits as it is, and nobody but llama.cpp,
    which rounds what meets integers, has to live with that.
    """
    with_head = grid.name in ("q8_0", "q8_k")
    targets = surgery.quantized.items()
    return [n for n, t in targets if t.is_layer and (with_head or not is_output_head(n))]


def quantize_activations(
    model: Any, surgery: SurgeryPlan, settings: ActivationSettings, batches: Sequence[Tensor]
) -> None:
    """Fake-quantize the inputs of trained projections, and the keys and values, as asked.

    Args:
        model: the prepared model.
        surgery: which projections.
        settings: `activations`, `kv_bits` ..., resolved.
        batches: text to measure static ranges on, from `calibration_batches`.

    Raises:
        GridError: inputs that do not fit the activation grid.
        ModelError: a model whose attention does not let its keys and values be quantized.
    """
    if settings.activations:
        grid = find_activation_grid(settings.activations, surgery.grid.group_size)
        names = rounded_inputs(surgery, grid)
        ranges = None
        if grid.static:
            ranges = calibrate(model, grid, names, batches, settings.activation_range)
        attach(model, grid, names, ranges, learn_scale=settings.learn_activation_ranges)
    if settings.kv_bits:
        quantize_kv_cache(model, settings.kv_bits)
