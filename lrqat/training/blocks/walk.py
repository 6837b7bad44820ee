"""A causal LM whose decoder blocks are run one at a time.

A model knows what its blocks want besides hidden states: positions, masks, and which of them each
block gets. So it is asked: its own forward is run once with blocks that compute nothing and write
down how they were called. All sequences have one length and no padding, so that what they were
called with for one sequence holds for any batch; where positions start anew within sequences, each
batch has its own.

Nobody keeps a list of the models that are built this way. `BlockWalk` runs a few tokens through the
blocks one at a time and compares with the model's own logits.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrqat.errors import ModelError
from lrqat.models.hidden_states import anatomy

_TRIAL_TOKENS = 8
# What a model does whose blocks are called, or answer, in another way than is tried.
_MISTAKES = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)


@dataclass(frozen=True)
class _Call:
    """How a block is called: what follows the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, block: nn.Module, hidden: Tensor) -> Tensor:
        made = block(hidden, *self.args, **self.kwargs)
        return made[0] if isinstance(made, tuple) else made


class BlockWalk:
    """The way through a model, block by block.

    Attributes:
        names: of the blocks, in order.
    """

    def __init__(self, model: Any, length: int, positions: Tensor | None = None) -> None:
        """Find out how the blocks of `model` are called for sequences of `length` tokens.

        Args:
            model: whose blocks may be on the meta device until they are run; then nothing is
                compared.
            length: of all sequences.
            positions: (sequences, length) where they start anew; None: all just run on.

        Raises:
            ModelError: its blocks cannot be run one at a time.
        """
        found = anatomy(model)
        self._model, self._layers = model, model.get_submodule(found.layers)
        self.names = [f"{found.layers}.{i}" for i in range(found.count)]
        self._positions = positions
        self._of_rows: tuple[bytes, list[_Call]] | None = None
        self._tuples = self._find_form()
        self._calls, _ = self._ask(torch.zeros(1, length, dtype=torch.long))
        if not any(parameter.is_meta for parameter in self._layers.parameters()):
            self._refuse_unless_alike()

    def embed(self, tokens: Tensor, rows: slice = slice(1)) -> Tensor:
        """What enters the first block: (batch, length, hidden) of tokens (batch, length).

        Args:
            tokens: of sequences `rows`.
            rows: which they are.
        """
        positions = None if self._positions is None else self._positions[rows]

        def stop(index: int, hidden: Tensor, *_: Any) -> Tensor:
            raise _Entered(hidden)

        try:
            with _replaced(self._layers, stop, self._tuples):
                self._forward(tokens, positions)
        except _Entered as entered:
            return entered.hidden
        raise AssertionError("the model has blocks and ran none")

    def block(self, index: int) -> nn.Module:
        """The block as it is now."""
        return self._layers[index]

    def run(self, index: int, hidden: Tensor, rows: Tensor | slice) -> Tensor:
        """What block `index` makes of hidden states (batch, length, hidden) of sequences `rows`."""
        return self._calls_of(rows)[index](self.block(index), hidden)

    def as_module(self, index: int, batches: Iterable[Tensor | slice]) -> nn.Module:
        """Block `index` as a module that is called with hidden states alone.

        Args:
            index: of the block.
            batches: of which sequences the states are that it is called with, call by call.
        """
        rows = iter(batches)
        return _Alone(self.block(index), lambda: self._calls_of(next(rows))[index])

    def tail(self) -> nn.Module:
        """What follows the last block, as a module that is called with its hidden states alone."""
        return _Tail(self._model, self._layers, self._tuples)

    def _find_form(self) -> bool:
        """Whether the model wants tuples from its blocks."""
        for tuples in (False, True):
            self._tuples = tuples
            with contextlib.suppress(*_MISTAKES):
                calls, shapes = self._ask(torch.arange(_TRIAL_TOKENS)[None])
                if len(calls) == len(self.names) and len(set(shapes)) == 1:
                    return tuples
        raise self._refusal()

    def _calls_of(self, rows: Tensor | slice) -> list[_Call]:
        """How the blocks are called for some sequences; those of the last batch are kept."""
        if self._positions is None:
            return self._calls
        positions = self._positions[rows]
        key = positions.numpy().tobytes()
        if self._of_rows is None or self._of_rows[0] != key:
            calls, _ = self._ask(torch.zeros_like(positions), positions)
            self._of_rows = (key, calls)
        return self._of_rows[1]

    def _ask(
        self, tokens: Tensor, positions: Tensor | None = None
    ) -> tuple[list[_Call], list[torch.Size]]:
        """How the blocks are called for `tokens`, and the shapes of what they are given."""
        calls: list[_Call] = []
        shapes: list[torch.Size] = []

        def write_down(index: int, hidden: Tensor, args: tuple[Any, ...], kwargs: Any) -> Tensor:
            calls.append(_Call(args, kwargs))
            shapes.append(hidden.shape)
            if positions is not None and len(calls) == len(self.names):
                raise _Entered(hidden)  # all is known; the head would take long
            return hidden

        with contextlib.suppress(_Entered), _replaced(self._layers, write_down, self._tuples):
            self._forward(tokens, positions)
        return calls, shapes

    def _forward(self, tokens: Tensor, positions: Tensor | None = None) -> Any:
        device = next(self._model.parameters()).device
        given = {"input_ids": tokens.to(device)}
        if positions is not None:
            given["position_ids"] = positions.to(device)
        with torch.no_grad():
            return self._model(**given, use_cache=False).logits

    @torch.no_grad()
    def _refuse_unless_alike(self) -> None:
        """Compare a few tokens with the model's own way."""
        trial = torch.arange(_TRIAL_TOKENS)[None]
        expected, logits = self._forward(trial), None
        with contextlib.suppress(*_MISTAKES):
            calls, _ = self._ask(trial)
            hidden = self._trial_states(trial)
            for call, block in zip(calls, self._layers, strict=True):
                hidden = call(block, hidden)
            logits = self.tail()(hidden)
        bound = torch.finfo(expected.dtype).eps * expected.float().abs().max()
        if logits is None or logits.shape != expected.shape:
            raise self._refusal()
        if (logits.float() - expected.float()).abs().max() > bound:
            raise self._refusal()

    def _trial_states(self, trial: Tensor) -> Tensor:
        """What enters the first block for a sequence of any length."""
        positions, self._positions = self._positions, None
        try:
            return self.embed(trial)
        finally:
            self._positions = positions

    def _refusal(self) -> ModelError:
        return ModelError(
            f"the blocks of {type(self._model).__name__} cannot be run one at a time, as the "
            "block-wise stage does; use --stages model"
        )


class _Entered(Exception):  # noqa: N818 - no error, a way out
    """What enters the first block is known."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


class _Alone(nn.Module):
    """A block that is called with hidden states alone."""

    def __init__(self, block: nn.Module, call: Callable[[], _Call]) -> None:
        super().__init__()
        self.block, self._call = block, call

    def forward(self, hidden: Tensor) -> Tensor:
        return self._call()(self.block, hidden)

    def get_submodule(self, target: str) -> nn.Module:
        """A module by its name inside the block."""
        return self.block.get_submodule(target)


class _Tail(nn.Module):
    """A model whose blocks are passed over: called with what leaves the last of them."""

    def __init__(self, model: Any, layers: Any, tuples: bool) -> None:
        super().__init__()
        self.model, self._blocks, self._tuples = model, (layers,), tuples

    def forward(self, hidden: Tensor) -> Tensor:
        tokens = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        with _replaced(*self._blocks, lambda *_: hidden, self._tuples):
            logits: Tensor = self.model(input_ids=tokens, use_cache=False).logits
        return logits

    def get_submodule(self, target: str) -> nn.Module:
        """A module by its name in the model."""
        return self.model.get_submodule(target)


@contextlib.contextmanager
def _replaced(layers: Any, instead: Callable[..., Tensor], tuples: bool) -> Iterator[None]:
    """Inside, blocks do `instead(index, hidden, args, kwargs)` and compute nothing."""

    def forward_of(index: int) -> Callable[..., Any]:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            made = instead(index, hidden_states, args, kwargs)
            return (made,) if tuples else made

        return forward

    for index, layer in enumerate(layers):
        layer.forward = forward_of(index)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward
