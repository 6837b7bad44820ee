"""The matrix products of a PyTorch model, computed in another way for a while.

    with computed_by(in_another_order(seed=1)):      sums over inputs in another order
        logits = model(ids)

Whatever multiplies with a weight goes through `torch.nn.functional.linear` or, in GPT-2's Conv1D,
`torch.addmm`: linear layers, heads, experts of a stack. Those two are intercepted, so nothing here
knows an architecture. Contexts nest; the innermost comes first and calls the ones around it, so
another order, which copies weights, is entered before whatever has to know which weight it is.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

# x (..., in), weight (out, in), bias (out,) or None -> (..., out)
Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class _Products(TorchFunctionMode):
    def __init__(self, product: Product) -> None:
        super().__init__()
        self._product = product

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = kwargs or {}
        if func is F.linear:
            x, weight, *rest = args
            bias = rest[0] if rest else given.get("bias")
            return self._product(x, weight, bias)
        if func is torch.addmm and not given:
            bias, x, weight = args  # Conv1D's (in, out)
            return self._product(x, weight.T, bias)
        return func(*args, **given)


@contextmanager
def computed_by(product: Product) -> Iterator[None]:
    """Inside, `product` computes every product with a weight; it may call `F.linear` itself."""
    with _Products(product):
        yield


def in_another_order(seed: int) -> Product:
    """A product that sums over its inputs in an order drawn from `seed`.

    The result differs from the usual one by what float32 loses in another order of summation, which
    is what two correct runtimes differ by.
    """

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(weight.shape[1], generator=generator).to(weight.device)
        return F.linear(x[..., order], weight[:, order], bias)

    return product


def identity_of(weight: Tensor) -> int:
    """What a weight, its transpose and the parts of its stack have in common: their storage."""
    return weight.untyped_storage().data_ptr()
