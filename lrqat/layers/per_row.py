"""Gradients of a layer with one scale a row, without ever forming dL/dW (out, in).

With g = dL/dy (tokens, out) and y = x W^T, W = s (q - z):

    dL/ds = sum over tokens of g y / s
    dL/dA = (alpha/r) s (g^T (x B^T))        dL/dB = (alpha/r) (g (s A))^T x

Products with A and B are thin: 2 r (in + out) multiplications a token in place of in out. That of s
is exact. Those of A and B also get what clipped entries would give, which the dense path of
`lrqat.layers.linear` takes out: to leave out single entries of dL/dW they would have to be
computed, at the cost of 60 to 130 entries of a full matrix product each. Where few are clipped that
does not matter: on pycode-8m, on a grid of 4 bits a channel with 0.9 % clipped, training ended at a
KL of 0.00885, and of 0.00876 without them. Where more than `MOST_CLIPPED` are (2 and 3 bits), the
dense path is taken. The choice depends on shapes and weights alone.
"""

from torch import Tensor

from lrqat.grids.quantize import inside
from lrqat.layers.weight import Gradients, QuantizedWeight, row_blocks

MOST_CLIPPED = 1 / 64
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


def few_clipped(weight: QuantizedWeight) -> bool:
    """Whether so few entries are clipped, in the first block of rows, that they do not matter."""
    latent = weight.latent(next(weight.row_blocks()))
    return bool(inside(latent, weight.grid).float().mean() >= 1 - MOST_CLIPPED)


def add_gradients(
    grads: Gradients,
    weight: QuantizedWeight,
    x: Tensor,
    grad: Tensor,
    y: Tensor,
) -> None:
    """Add the gradients of A, B and s.

    Args:
        grads: where to add.
        weight: the weight, with `suits(weight)`.
        x: inputs (tokens, in).
        grad: dL/dy (tokens, out).
        y: outputs without the bias (tokens, out).
    """
    scale = weight.stored().scale  # (out, 1)
    grad_a, grad_b, grad_scale = (grads[name] for name in ("lora_a", "lora_b", "scale"))
    if grad_scale is not None:
        # In blocks: their products in the dtype of the scales are small.
        for tokens in row_blocks(grad.shape[0], grad.shape[1], grad.device):
            products = (grad[tokens].to(scale.dtype) * y[tokens]).sum(0)
            grad_scale.addcdiv_(products[:, None], scale)
    if grad_a is None or grad_b is None:
        return
    scaled_a = weight.lora_a * scale * weight.scaling
    low = x @ weight.lora_b.T.to(x.dtype)  # (tokens, r)
    grad_a.addcmul_((low.T @ grad).T.to(scale.dtype), scale, value=weight.scaling)
    grad_b.add_((grad @ scaled_a.to(grad.dtype)).T @ x)
