"""A training step on the meta device: the real code on tensors that have shapes and no memory.

The live tensors of the step are counted as they would be, by purpose, so nothing here knows an
architecture, a method, a teacher, or what autograd keeps. Seven things need help:

    attention      on meta, PyTorch takes the way that keeps attention matrices; on CPU and GPU it
                   takes the fused one, which keeps its inputs, its output and one sum per row
    blocks         a weight is built in blocks of rows that are all alike: one of them is enough
    autocast       PyTorch refuses to be asked about it on meta, where it is always off
    scales         are not searched for
    clipping       is taken to be rare
    the head       is taken to be all that follows the backbone, without the trial on values
    values         the meta device has none. A question about them is answered with yes (the one
                   that transformers asks is whether all of a row is one text), and tokens are
                   taken to be all different
"""

import functools
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lrqat.grids.grid import Grid
from lrqat.grids.quantize import Scales
from lrqat.layers import per_row, weight
from lrqat.layers.weight import QuantizedWeight
from lrqat.models import preparation, split
from lrqat.models.split import Split
from lrqat.models.trial import is_about_shapes, running
from lrqat.training.objectives.losses import Objective
from lrqat.without_values import WithoutValues

_VALUES_A_TOKEN = 17  # times the hidden size: what a layer holds at a time, as a rule of thumb


class PurposeCounter(TorchDispatchMode):
    """Counts the bytes of live meta tensors while it is entered, each storage once, by purpose.

    Attributes:
        purpose: of the tensors that are made from now on.
        live: purpose -> bytes alive now.
        peak: the same at the moment when most were alive.
    """

    def __init__(self) -> None:
        super().__init__()
        self.purpose = "working"
        self.live: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self._known: dict[int, tuple[weakref.ref[Any], int]] = {}
        self._purposes: dict[int, str] = {}

    def hold(self, tensors: Iterable[Tensor], purpose: str) -> None:
        """Count tensors that exist, under `purpose` also if they were counted under another."""
        for tensor in tensors:
            self._move(self._count(tensor), purpose)

    def rename(self, old: str, new: str) -> None:
        """What is alive for `old` is for `new` from now on."""
        for key in [key for key, purpose in self._purposes.items() if purpose == old]:
            self._move(key, new)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_meta and leaf.layout is torch.strided:
                self._count(leaf)
        if self.live.total() > self.peak.total():
            self.peak = self.live.copy()
        return result

    def _count(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            reference = weakref.ref(storage, lambda _: self._freed(key))
            self._known[key] = reference, storage.nbytes()
            self._purposes[key] = self.purpose
            self.live[self.purpose] += storage.nbytes()
        return key

    def _move(self, key: int, purpose: str) -> None:
        size = self._known[key][1]
        self.live[self._purposes[key]] -= size
        self.live[purpose] += size
        self._purposes[key] = purpose

    def _freed(self, key: int) -> None:
        self.live[self._purposes.pop(key)] -= self._known.pop(key)[1]


@contextmanager
def shapes_only() -> Iterator[None]:
    """Inside, models can be prepared and run on the meta device. See the module's text.

    Tensors that are not on meta are treated as always. Not for two threads at a time.
    """
    replaced: list[tuple[Any, str, Callable[..., Any]]] = [
        (weight, "row_blocks", _first_block),
        (preparation, "find_scales", _empty_scales),
        (per_row, "few_clipped", _few_on_meta),
        (split, "split", _split_untried),
        (torch, "is_autocast_enabled", _never_on_meta),
        (torch, "autocast", _none_on_meta),
        # Not one of the answers: those are not asked when checkpointing computes a layer again.
        (F, "scaled_dot_product_attention", _attend),
    ]
    originals = [getattr(module, name) for module, name, _ in replaced]
    for (module, name, ours), original in zip(replaced, originals, strict=True):
        setattr(module, name, functools.partial(ours, original))
    try:
        # Initialising a meta tensor must not move the generator that A and B come from.
        with torch.random.fork_rng(devices=[]), WithoutValues({Tensor.unique: _unique}):
            yield
    finally:
        for (module, name, _), original in zip(replaced, originals, strict=True):
            setattr(module, name, original)


def forward_bytes(model: Any, shape: tuple[int, int], *, cached: bool = False) -> int:
    """Bytes that a forward pass without gradients needs beyond the model, logits in float32.

    Args:
        model: on meta; in evaluation mode from here. Call outside `shapes_only`.
        shape: (batch, tokens).
        cached: whether keys and values of all layers are kept, as models do if nobody asks.

    Raises:
        ModelError: the model cannot be run as its configuration describes it.
    """
    counter, config = PurposeCounter(), model.config.get_text_config()
    counter.hold([*model.parameters(), *model.buffers()], "model")
    resident = counter.live.total()
    ids = torch.zeros(shape, dtype=torch.long, device="meta")
    try:
        with shapes_only(), torch.no_grad(), counter:
            output = model.eval()(input_ids=ids, use_cache=cached)
            output.logits.float()  # while the output is there, as its cache is
    except Exception as error:
        if not isinstance(error, RuntimeError) or is_about_shapes(error):
            with running(model):
                raise
        # An operator that needs values, and that nobody answers for.
        return 4 * shape[0] * shape[1] * (config.vocab_size + _VALUES_A_TOKEN * config.hidden_size)
    return counter.peak.total() - resident


def run_step(
    counter: PurposeCounter,
    model: Any,
    objective: Objective,
    rows: dict[str, Tensor],
    *,
    batches: int,
) -> None:
    """One training step of a prepared meta model, its parameters and optimiser state held already.

    Purposes, beside those that the caller holds: "activations" what the forward pass leaves for
    the backward pass, "logits" what the loss makes, "teacher" the features of a teacher that is
    the model itself, "gradients" those of the parameters, and "working" what is gone at once.

    Args:
        counter: where to count.
        model: prepared, on meta, in training mode; call inside `shapes_only`.
        objective: the loss; its teacher, if it is a model, on meta.
        rows: what a batch has: "input_ids" (batch, tokens), and what the objective asks for.
        batches: batches per step (gradient accumulation).
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    hooks = [p.register_post_accumulate_grad_hook(_gradient_made(counter)) for p in trained]
    hooks.append(model.base_model.register_forward_hook(_features_made(counter)))
    with counter:
        # A third batch needs what a second does: gradients that are there already.
        for _ in range(min(batches, 2)):
            loss = objective(model, **rows)
            counter.purpose = "working"
            if loss.requires_grad:
                loss.backward()
            del loss
        _update(trained)
    for hook in hooks:
        hook.remove()


def _update(trained: list[nn.Parameter]) -> None:
    """AdamW, one parameter at a time: two temporaries of the largest (torch.optim.adamw)."""
    if trained:
        largest = max(trained, key=torch.numel)
        root = torch.empty_like(largest)
        torch.empty_like(root)


def _gradient_made(counter: PurposeCounter) -> Callable[[Tensor], None]:
    def hook(parameter: Tensor) -> None:
        if parameter.grad is not None:
            counter.hold([parameter.grad], "gradients")

    return hook


def _features_made(counter: PurposeCounter) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        learning = torch.is_grad_enabled()
        counter.rename("working", "activations" if learning else "teacher")
        counter.purpose = "logits" if learning else "working"

    return hook


class _FusedAttention(torch.autograd.Function):
    """Shapes of PyTorch's flash attention: query (batch, heads, tokens, size) and so on."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        # Laid out (batch, tokens, heads, size), so that merging the heads copies nothing.
        batch, heads, tokens, _ = query.shape
        shape = (batch, tokens, heads, value.shape[-1])
        output = torch.empty(shape, dtype=query.dtype, device=query.device).transpose(1, 2)
        sums = torch.empty(query.shape[:-1], dtype=torch.float32, device=query.device)
        ctx.save_for_backward(query, key, value, output, sums)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(t) for t in ctx.saved_tensors[:3])


def _attend(original: Any, query: Tensor, key: Tensor, value: Tensor, *more: Any, **kw: Any) -> Any:
    if query.is_meta:
        return _FusedAttention.apply(query, key, value)
    return original(query, key, value, *more, **kw)


def _first_block(original: Any, *size: Any) -> Iterator[slice]:
    yield next(original(*size))


def _empty_scales(original: Any, values: Tensor, grid: Grid, *how: Any) -> Scales:
    if not values.is_meta:
        return original(values, grid, *how)
    shape = (values.shape[0], grid.groups(values.shape[1]))
    has = (True, grid.minimum is not None, grid.zero_point)
    return Scales.of(torch.empty(shape, device="meta") if part else None for part in has)


def _few_on_meta(original: Any, layer: QuantizedWeight) -> bool:
    return layer.scale.is_meta or original(layer)


def _split_untried(original: Any, model: Any, input_ids: Tensor) -> Split | None:
    if not input_ids.is_meta:
        return original(model, input_ids)
    vocabulary = model.config.get_text_config().vocab_size
    head = model.get_output_embeddings()
    if head is None or model.base_model is model:
        return Split(model, vocabulary)
    return Split(model, vocabulary, model.base_model, head)


def _never_on_meta(original: Any, *device: Any) -> bool:
    return device != ("meta",) and original(*device)


def _none_on_meta(original: Any, device_type: str, *args: Any, **kwargs: Any) -> Any:
    return nullcontext() if device_type == "meta" else original(device_type, *args, **kwargs)


def _unique(ids: Tensor, **_: Any) -> tuple[Tensor, Tensor]:
    return ids.clone(), torch.zeros_like(ids)
