"""Where V starts when the second moments of the inputs are known: rounding errors are made up for.

Columns are rounded one after the other, and what each loses is made up for by all columns that
follow, as far as their inputs go together. With H = E[x x^T] and U^T U = H^-1, U upper triangular,
rounding column j with the error e_j = (W_j - Wq_j) / U_jj changes what is not rounded yet by

    W_k -= e_j U_jk,   k > j

What is returned is V = (W + o) / s of every column as it was when its turn came: its nearest
integers are the ones that were chosen.
Source: Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", 2022, algorithm 1; the order of columns is the model's own, since groups and their
scales are given.
"""

import torch
from torch import Tensor

from lrqat.grids.grid import Grid
from lrqat.grids.quantize import Scales, integers

_DAMPING = 0.01  # of the mean of H's diagonal, as in the paper
_BLOCK = 64  # columns whose later changes are put off, to make them one product


def compensated(weight: Tensor, scales: Scales, grid: Grid, moments: Tensor) -> Tensor:
    """V (out, in), float32, whose integers make up for one another's errors.

    Args:
        weight: (out, in), any floating dtype.
        scales: stored scales, (out, groups).
        grid: the grid.
        moments: H, (in, in), the mean of x x^T over tokens.
    """
    left = weight.float().clone()
    factor = _inverse_factor(moments)
    columns = left.shape[1]
    size = columns // scales.scale.shape[1]
    latent = torch.empty_like(left)
    for start in range(0, columns, _BLOCK):
        end = min(columns, start + _BLOCK)
        errors = torch.empty_like(left[:, start:end])
        for j in range(start, end):
            group = j // size
            scale = scales.scale[:, group]
            offset = 0.0 if scales.offset is None else scales.offset[:, group]
            latent[:, j] = (left[:, j] + offset) / scale
            rounded = integers(latent[:, j].clone(), grid) * scale - offset
            error = (left[:, j] - rounded) / factor[j, j]
            left[:, j:end] -= error[:, None] * factor[j, j:end]
            errors[:, j - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    # A group of zeros has a scale of zero, and what is made up for there has no integer.
    return latent.nan_to_num_(nan=0.0, posinf=grid.q_max, neginf=grid.q_min)


def _inverse_factor(moments: Tensor) -> Tensor:
    """U of the damped H, float32 upper triangular; inputs that are always zero change nothing."""
    wide = moments.cpu() if moments.device.type == "mps" else moments  # MPS has no float64
    matrix = wide.double().clone()
    diagonal = matrix.diagonal()
    diagonal += _DAMPING * diagonal.mean().clamp(min=torch.finfo(torch.float32).tiny)
    lower = torch.linalg.cholesky(matrix)
    upper = torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)
    return upper.float().to(moments.device)
