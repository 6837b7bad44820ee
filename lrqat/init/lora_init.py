"""The A and B that training starts from.

    random    A = 0, B Kaiming-uniform (the LR-QAT paper): training begins at round-to-nearest
    inputs    A = 0, the rows of B are the directions in which the inputs vary most: what A learns
              then changes the outputs most (Paischer et al., "Parameter Efficient Fine-tuning via
              Explained Variance Adaptation", 2024)
    error     B as for inputs, and A such that rounding leaves little error along these directions

`error` is the low-rank part of what methods like GPTQ do, in the form that LR-QAT trains. With
E = W0 - W the error of a weight and v_k the directions, the outputs are off by E x, and

    J_i = (E C E^T)_ii,   C = E[x x^T] ~ sum of e_k v_k v_k^T + diagonal

is what row i loses. Each iteration adds a part of E v_k to A: weights near the edge of rounding go
over it, and most of E v_k is gone after a few. Every integer that changes also brings noise, in all
directions, so the step falls to zero, and each row keeps the A that was best; none is worse than
round-to-nearest by J.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from lrqat.grids.quantize import Scales, integers, to_weights
from lrqat.init.input_directions import InputDirections
from lrqat.init.starts import LoRAInit
from lrqat.layers.weight import QuantizedWeight

_ITERATIONS = 20
_FIRST_STEP = 0.3
_SIZE_OF_B = 3**-0.5  # root mean square of a row's entries times sqrt(in), as Kaiming-uniform has


def along_inputs(layer: QuantizedWeight, weight: Tensor, inputs: InputDirections) -> None:
    """`inputs` of the module docstring: the rows of B of a layer that has just been made."""
    layer.lora_b.copy_(inputs.vectors[: layer.lora_b.shape[0]] * _SIZE_OF_B)


def cancel_error(layer: QuantizedWeight, weight: Tensor, inputs: InputDirections) -> None:
    """`error` of the module docstring."""
    along_inputs(layer, weight, inputs)
    stored = layer.stored()
    for rows in layer.row_blocks():
        _cancel(layer, weight[rows].float(), rows, stored[rows], inputs)


@torch.no_grad()
def initialise(
    layer: QuantizedWeight, weight: Tensor, inputs: InputDirections, init: LoRAInit
) -> None:
    """Set A and B of a layer that has just been made.

    Args:
        layer: with A zero.
        weight: its full-precision weight (out, in).
        inputs: of this projection, r or more directions.
        init: what to do.
    """
    if init.start is not None and layer.lora_b.shape[0]:
        init.start(layer, weight, inputs)


@contextlib.contextmanager
def round_to_nearest(model: nn.Module) -> Iterator[bool]:
    """Inside, A is zero in all weights of a prepared model; tells whether it was not before."""
    weights = [m for m in model.modules() if isinstance(m, QuantizedWeight)]
    kept = [weight.lora_a.data for weight in weights]
    for weight in weights:
        weight.lora_a.data = torch.zeros_like(weight.lora_a)
    try:
        yield any(bool(a.any()) for a in kept)
    finally:
        for weight, a in zip(weights, kept, strict=True):
            weight.lora_a.data = a


def _cancel(
    layer: QuantizedWeight, weight: Tensor, rows: slice, stored: Scales, inputs: InputDirections
) -> None:
    """Find A of some rows."""
    rank = layer.lora_b.shape[0]
    directions, energies = inputs.vectors[:rank].T, inputs.energies[:rank]
    # What one of A adds to W along its direction (rows, 1).
    worth = layer.slope(rows, stored).mean(1, keepdim=True) * layer.scaling * _SIZE_OF_B
    a = layer.lora_a[rows]
    best, least = a.clone(), torch.full_like(worth, torch.inf)
    for iteration in range(_ITERATIONS + 1):
        error = weight - to_weights(integers(layer.latent(rows), layer.grid), stored)
        along = error @ directions
        loss = along.square() @ energies[:, None] + error.square() @ inputs.rest[:, None]
        better = loss < least
        best, least = torch.where(better, a, best), torch.where(better, loss, least)
        a.add_(_FIRST_STEP * (1 - iteration / _ITERATIONS) * along / worth)
    a.copy_(best)
