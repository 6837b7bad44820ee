"""Gradients of a layer with one scale a row, without ever forming dL/dW (out, in).

With g = dL/dy (tokens, out) and y = x W^T, W = s (q - z), where nothing is clipped:

    dL/ds = sum over tokens of g y / s
    dL/dA = (alpha/r) s (g^T (x B^T))        dL/dB = (alpha/r) (g (s A))^T x

Products with A and B are thin: 2 r (in + out) multiplications a token in place of in out.
A clipped entry must not reach A and B. Its part, G[o, i] = g[:, o] . x[:, i], is computed for the
clipped entries alone and taken off again, so the gradients are exact. One such product costs about
as much as 60 (float32) to 130 (bfloat16) entries of a full matrix product, so a weight with more
clipped entries than one in `ENTRIES_PER_CLIPPED` takes the dense path of `lrqat.layer`. The choice
depends on shapes and weights alone.
"""

import torch
from torch import Tensor

from lrqat.quantize import outside
from lrqat.weight import Gradients, QuantizedWeight, row_blocks

# Half of where the dense path becomes the cheaper one, in bfloat16.
ENTRIES_PER_CLIPPED = 256
_CHUNK = 64  # clipped entries at a time: two temporaries of (64, tokens)
_THIN = {"lora_a", "lora_b", "scale"}


def suits(weight: QuantizedWeight) -> bool:
    """Whether the formulae hold for `weight` and are cheaper than the dense ones."""
    rows, columns = weight.out_features, weight.in_features
    products = 2 * weight.lora_a.shape[1] * (rows + columns)  # multiplications a token
    return (
        weight.scale.shape[1] == 1
        and weight.grid.levels is None
        and weight.trained().keys() <= _THIN
        and 2 * products <= rows * columns  # thin ones run at about half the speed
    )


class Clipped:
    """Gathers the clipped entries of a weight over blocks of rows.

    Attributes:
        too_many: more were found than this path is good for; what was gathered is incomplete.
    """

    def __init__(self, weight: QuantizedWeight) -> None:
        self._grid = weight.grid
        self._left = weight.out_features * weight.in_features // ENTRIES_PER_CLIPPED
        self._found: list[Tensor] = []
        self.too_many = False

    def add(self, latent: Tensor, rows: slice) -> None:
        """Look through V (rows, in) of a block; does not change it."""
        found = outside(latent, self._grid)
        self._left -= len(found)
        self.too_many = self._left < 0
        found[:, 0] += rows.start
        self._found.append(found)

    def entries(self) -> tuple[Tensor, Tensor]:
        """Rows (n,) and columns (n,), int64."""
        rows, columns = torch.cat(self._found).unbind(1)
        return rows, columns


def add_gradients(
    grads: Gradients,
    weight: QuantizedWeight,
    x: Tensor,
    grad: Tensor,
    y: Tensor,
    clipped: tuple[Tensor, Tensor],
) -> None:
    """Add the gradients of A, B and s.

    Args:
        grads: where to add.
        weight: the weight, with `suits(weight)`.
        x: inputs (tokens, in).
        grad: dL/dy (tokens, out).
        y: outputs without the bias (tokens, out).
        clipped: rows and columns of all clipped entries.
    """
    scale = weight.stored().scale  # (out, 1)
    grad_a, grad_b, grad_scale = (grads[name] for name in ("lora_a", "lora_b", "scale"))
    if grad_scale is not None:
        # In blocks: their products in the dtype of the scales are small.
        for tokens in row_blocks(*grad.shape):
            products = (grad[tokens].to(scale.dtype) * y[tokens]).sum(0)
            grad_scale.addcdiv_(products[:, None], scale)
    if grad_a is None or grad_b is None:
        return
    scaled_a = weight.lora_a * scale * weight.scaling
    low = x @ weight.lora_b.T.to(x.dtype)  # (tokens, r)
    grad_a.addcmul_((low.T @ grad).T.to(scale.dtype), scale, value=weight.scaling)
    grad_b.add_((grad @ scaled_a.to(grad.dtype)).T @ x)
    rows, columns = clipped
    if len(rows):
        part = _entries(grad, x, rows, columns).to(scale.dtype)[:, None]  # of dL/dW, (n, 1)
        factor = part * scale[rows] * -weight.scaling
        grad_a.index_add_(0, rows, factor * weight.lora_b.T[columns])
        grad_b.T.index_add_(0, columns, -part * scaled_a[rows])


def _entries(grad: Tensor, x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Entries (rows[k], columns[k]) of grad^T x: (n,)."""
    grads, inputs = grad.T.contiguous(), x.T.contiguous()  # so that an entry reads two long runs
    pairs = zip(rows.split(_CHUNK), columns.split(_CHUNK), strict=True)
    return torch.cat([torch.linalg.vecdot(grads[o], inputs[i]) for o, i in pairs])
