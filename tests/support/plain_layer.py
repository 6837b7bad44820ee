"""A layer as if trained, and the same expression with ordinary autograd operations."""

import torch
from torch import nn

from lrqat.grids.grid import GRIDS
from lrqat.grids.quantize import per_weight
from lrqat.init.range_init import find_scales
from lrqat.layers.frozen import DOWNCASTS
from lrqat.layers.linear import LRQATLinear


def make_layer(grid_name, *, columns=256, rows=24, phi="fp32", bias=True, rank=4, trained=True):
    torch.manual_seed(0)
    grid = GRIDS[grid_name]
    linear = nn.Linear(columns, rows, bias=bias)
    ranges = find_scales(linear.weight, grid, "lp")
    layer = LRQATLinear.from_linear(
        linear, ranges, grid=grid, downcast=DOWNCASTS[phi], rank=rank, alpha=8.0
    )
    if trained:  # large enough that many integers move and some entries clip
        nn.init.normal_(layer.lora_a, std=grid.q_max / grid.step)
        layer.scale.data.mul_(torch.empty_like(layer.scale).uniform_(0.6, 1.4))
    return linear, layer


def ste(rounded, exact):
    return exact + (rounded - exact).detach()


def plain_forward(layer, x):
    """The same expression with ordinary autograd operations and straight-through rounding."""
    grid, columns = layer.grid, layer.in_features
    phi = layer.downcast.decode(layer.phi, grid, columns, torch.float64)
    change = layer.scaling * layer.lora_a @ layer.lora_b
    if layer.unit is not None:
        change = change * per_weight(layer.unit.double(), columns)
    latent = phi + change
    clipped = latent.clamp(*edges(grid))
    q = ste(nearest(clipped, grid), clipped)
    stored = layer.stored()
    weight = q * per_weight(ste(stored.scale, layer.scale), columns)
    if stored.minimum is not None:
        weight = weight - per_weight(ste(stored.minimum, layer.minimum), columns)
    if stored.zero_point is not None:
        scale = ste(stored.scale, layer.scale)
        weight = weight - per_weight(scale * stored.zero_point, columns)
    y = x @ weight.T
    return y if layer.bias is None else y + layer.bias


def levels(grid):
    return torch.tensor(grid.levels or range(grid.q_min, grid.q_max + 1), dtype=torch.float64)


def edges(grid):
    """Half a step beyond the outermost levels: further out nothing is learned."""
    values = levels(grid)
    low, high = values[0] - (values[1] - values[0]) / 2, values[-1] + (values[-1] - values[-2]) / 2
    return low.item(), high.item()


def nearest(latent, grid):
    values = levels(grid)
    return values[(latent[..., None] - values).abs().argmin(-1)]
