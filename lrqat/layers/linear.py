"""The layer: a linear projection whose low-rank matrices live inside the rounding.

    y = x W^T + bias        x (..., in)   W (out, in), see `lrqat.layers.weight`   y (..., out)

Between forward and backward x and the parameters are kept. Both passes build W in blocks of rows,
and in backward W takes the place of dL/dW, so one (out, in) matrix exists at a time, and beside it
only temporaries of a block. With one scale a row, y is kept too, and no dL/dW is formed at all
where few weights are clipped: see `lrqat.layers.per_row`.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lrqat.grids.quantize import Scales
from lrqat.layers import per_row
from lrqat.layers.weight import BuildWeight, Gradients, QuantizedWeight


class _Keep(torch.autograd.Function):
    """Keeps a tensor as autograd keeps things: hooks (checkpointing) and changes in place count.

    The graph holds `leaf`, whose gradient makes it a graph, for as long; so that is not the tensor.
    """

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, tensor: Tensor) -> Tensor:
        ctx.save_for_backward(tensor)
        return leaf.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> None:
        """Never run."""


class _Project(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, layer: "LRQATLinear", keep_output: bool, *trained: Tensor
    ) -> Tensor:
        ctx.layer, ctx.output = layer, None
        ctx.save_for_backward(x, *trained)
        y = F.linear(x, layer.write_weight(_like_weight(layer, x), layer.stored()))
        if keep_output and any(ctx.needs_input_grad[3:]):
            with torch.enable_grad():
                leaf = y.new_empty(0, requires_grad=True)
                ctx.output = _Keep.apply(leaf, y.detach()).grad_fn
        return y

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> tuple[Tensor | None, ...]:
        x: Tensor = ctx.saved_tensors[0]
        layer: LRQATLinear = ctx.layer
        grad = outputs[0].reshape(-1, layer.out_features)  # (tokens, out)
        inputs = x.reshape(-1, layer.in_features)  # (tokens, in)
        grads, y = Gradients(layer), _kept_output(ctx)
        if y is not None and per_row.few_clipped(layer):
            per_row.add_gradients(grads, layer, inputs, grad, y.view(grad.shape))
            weight = layer.write_weight(_like_weight(layer, x), layer.stored())
        else:
            weight = _dense_gradients(layer, grads, inputs, grad)
        grad_x = (grad @ weight).view(x.shape) if ctx.needs_input_grad[0] else None
        return grad_x, None, None, *(grads[name] for name in layer.trained())


def _kept_output(ctx: Any) -> Tensor | None:
    """What forward gave; None if it was not kept or is no longer the same."""
    node, ctx.output = ctx.output, None  # dropped here: the graph may outlive its backward
    try:
        return None if node is None else node.saved_tensors[0]
    except RuntimeError:  # the model changed the output in place (OLMo clamps its queries)
        return None


def _dense_gradients(
    layer: "LRQATLinear", grads: Gradients, inputs: Tensor, grad: Tensor
) -> Tensor:
    """Fill `grads` from dL/dW and return W."""
    stored = layer.stored()
    matrix = grad.T @ inputs  # G (out, in), and block by block W takes its place
    for rows in layer.row_blocks():
        block = matrix[rows].to(layer.lora_a.dtype)
        matrix[rows] = layer.add_gradients(grads, block, rows, stored[rows])
    return matrix


def _like_weight(layer: "LRQATLinear", x: Tensor) -> Tensor:
    return torch.empty(layer.out_features, layer.in_features, dtype=x.dtype, device=x.device)


class LRQATLinear(QuantizedWeight):
    """A frozen linear layer on a grid, trained through A, B and s.

    Attributes:
        bias: frozen (out,), or None.
        exact: compute with the full-precision weight instead, see `lrqat.layers.modes`.
    """

    bias: Tensor | None
    _built: dict[bool, Tensor] | None = None  # inside `building_once`: W, and W0 under True

    def __init__(
        self, weight: Tensor, scales: Scales, bias: Tensor | None = None, **settings: Any
    ) -> None:
        """As `QuantizedWeight`, with a bias (out,)."""
        super().__init__(weight, scales, **settings)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.exact = False

    @classmethod
    def from_linear(cls, linear: nn.Linear, scales: Scales, **settings: Any) -> "LRQATLinear":
        """Freeze `linear`, whose weight (out, in) is not modified.

        Args:
            linear: the layer.
            scales: start scales from `lrqat.init.range_init`.
            **settings: `grid`, `downcast`, `rank`, `alpha`.
        """
        return cls(linear.weight, scales, linear.bias, **settings)

    def forward(self, x: Tensor) -> Tensor:
        """Project x (..., in) to (..., out), in the dtype of x (or of an enclosing autocast)."""
        device = x.device.type
        if torch.is_autocast_enabled(device):
            x = x.to(torch.get_autocast_dtype(device))
        with torch.autocast(device, enabled=False):
            y = self._project(x)
            return y if self.bias is None else y + self.bias.to(y.dtype)

    def _project(self, x: Tensor) -> Tensor:
        if self._built is not None:
            if self.exact not in self._built:
                self._built[self.exact] = self._build(x)
            return F.linear(x, self._built[self.exact])
        if self.exact:
            return F.linear(x, self._build(x))
        keep_output = torch.is_grad_enabled() and per_row.suits(self)
        return _Project.apply(x, self, keep_output, *self.trained().values())

    def _build(self, x: Tensor) -> Tensor:
        """What x is multiplied by, in its dtype; gradients of what is trained reach it."""
        if self.exact:
            return self.original(_like_weight(self, x))
        return BuildWeight.apply(self, x.dtype, *self.trained().values())

    @contextlib.contextmanager
    def building_once(self, x: Tensor) -> Iterator[Tensor]:
        """Inside, W is built once for many calls, and so is W0; both are kept until the end.

        Args:
            x: as what will be projected, in dtype and device.

        Yields:
            W (out, in), through which gradients reach what is trained.
        """
        self._built = {self.exact: self._build(x)}
        try:
            yield self._built[self.exact]
        finally:
            self._built = None
