"""What a training step costs: time, relative to full fine-tuning, and memory.

The model is a stack of Llama decoder layers with random weights, without embedding and head, whose
input asks for its gradient as in the middle of a deep model. A step is forward, backward and the
optimiser (AdamW, fused, what transformers' Trainer uses). Contenders:

    full      every weight trained, nn.Linear
    lora      plain LoRA beside frozen weights
    a grid    LR-QAT on it

They take turns, step by step, in one process, and a ratio is that of two steps of the same round:
on a machine with other work, single times mean little.
"""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory_probe import tensor_peak
from benchmarks.timing import Progress, Times, check_rounds, time_in_turns
from lrqat.errors import UserError
from lrqat.grids.grid import find_grid
from lrqat.models.preparation import Settings, prepare
from lrqat.models.small_llama import make_untrained_model
from lrqat.models.surgery import plan_surgery

FULL, LORA = "full", "lora"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_SEQUENCE = 512  # tokens that see each other; a short one leaves more of the step to the weights
_HEAD = 64


@dataclass(frozen=True)
class Stack:
    """The stack of layers.

    Attributes:
        width: of the residual stream; the feed-forward part is 2.75 times as wide.
        layers: decoder layers.
        dtype: name in `DTYPES`, of weights and activations.
        rank: of A and B.
    """

    width: int = 1024
    layers: int = 2
    dtype: str = "float32"
    rank: int = 32

    def __post_init__(self) -> None:
        if self.width < 256 or self.width % 256:
            raise UserError(
                f"--width {self.width} does not work; give a multiple of 256, so that every grid "
                "fits"
            )
        if self.layers < 1:
            raise UserError(f"--layers {self.layers} does not work; give at least 1")

    @property
    def intermediate(self) -> int:
        """Width of the feed-forward part, a multiple of 256."""
        return -(-self.width * 11 // 4 // 256) * 256

    @property
    def largest(self) -> int:
        """Bytes of the largest layer's weight in `dtype`."""
        return self.width * self.intermediate * DTYPES[self.dtype].itemsize

    def build(self, contender: str) -> Any:
        """The model of a contender. Raises GridError for an unknown grid."""
        heads = self.width // _HEAD
        model = make_untrained_model(
            vocabulary=16, hidden=self.width, intermediate=self.intermediate, layers=self.layers,
            heads=heads, kv_heads=heads, seed=0,
        ).to(DTYPES[self.dtype])  # fmt: skip
        if contender != FULL:
            grid = find_grid("q4_0" if contender == LORA else contender)
            method = "lora-then-rtn" if contender == LORA else "lr-qat"
            settings = Settings(rank=self.rank, method=method)
            prepare(model, plan_surgery(model, grid), settings)
        return model.model.train()


class Contender:
    """A model with its optimiser.

    Args:
        stack: the stack of layers.
        name: `FULL`, `LORA` or the name of a grid.
    """

    def __init__(self, stack: Stack, name: str) -> None:
        self.name, self._dtype, self._width = name, DTYPES[stack.dtype], stack.width
        self.model = stack.build(name)
        self.trained = [p for p in self.model.layers.parameters() if p.requires_grad]
        # A rate at which nothing changes over a measurement: what is clipped sets the cost too.
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-7, fused=True)

    def step(self, tokens: int, *, drop_gradients: bool = True) -> None:
        """One training step on `tokens` random tokens."""
        sequences = max(1, tokens // _SEQUENCE)
        generator = torch.Generator().manual_seed(0)
        shape = (sequences, tokens // sequences, self._width)
        x = torch.randn(shape, generator=generator).to(self._dtype).requires_grad_()
        upstream = torch.randn(shape, generator=generator).to(self._dtype)
        self.optimizer.zero_grad(set_to_none=drop_gradients)
        self.model(inputs_embeds=x, use_cache=False).last_hidden_state.backward(upstream)
        self.optimizer.step()

    def resident(self) -> list[Tensor]:
        """Parameters, buffers, gradients and the optimiser's state."""
        states = (v for s in self.optimizer.state.values() for v in s.values())
        return [
            *self.model.parameters(),
            *self.model.buffers(),
            *(p.grad for p in self.trained if p.grad is not None),
            *(v for v in states if torch.is_tensor(v)),
        ]


@dataclass(frozen=True)
class StepMemory:
    """Peak memory of a step beyond parameters, gradients and the optimiser's state, in bytes.

    Attributes:
        total: at the given number of tokens.
        weights: at one token, where activations are next to nothing: temporaries of weights.
        matrices: `weights` in matrices of the largest layer, in the compute dtype.
    """

    total: int
    weights: int
    matrices: float

    @property
    def activations(self) -> int:
        """What grows with the tokens."""
        return self.total - self.weights

    def to_json(self) -> dict[str, Any]:
        """All figures for machines."""
        return {**vars(self), "activations": self.activations}


def time_steps(
    stack: Stack,
    names: Iterable[str],
    *,
    tokens: int,
    rounds: int,
    progress: Progress = lambda items: items,
) -> dict[str, Times]:
    """Time steps of `FULL` and of every contender of `names`, in turns.

    Args:
        stack: the model.
        names: `LORA` or names of grids.
        tokens: of a step.
        rounds: counted rounds; one more goes before them.
        progress: wraps the iterable of rounds.

    Raises:
        UserError: fewer than two rounds, or no tokens.
        GridError: unknown grid.
    """
    check_rounds(rounds)  # before models are built
    contenders = {c.name: c for c in _contenders(stack, names, tokens)}
    calls = {name: functools.partial(c.step, tokens) for name, c in contenders.items()}
    return time_in_turns(calls, FULL, rounds=rounds, progress=progress)


def measure_memory(
    stack: Stack,
    names: Iterable[str],
    *,
    tokens: int,
    progress: Progress = lambda items: items,
) -> dict[str, StepMemory]:
    """Peak tensor bytes (`benchmarks.memory_probe.tensor_peak`) of a step of `FULL` and of `names`.

    Raises:
        UserError: no tokens.
        GridError: unknown grid.
    """
    result = {}
    for name in progress(_names(names, tokens)):
        contender = Contender(stack, name)
        contender.step(1)  # makes the gradients and the optimiser's state
        total, weights = (_added(contender, count) for count in (tokens, 1))
        result[name] = StepMemory(total, weights, weights / stack.largest)
    return result


def _added(contender: Contender, tokens: int) -> int:
    def step() -> None:
        contender.step(tokens, drop_gradients=False)

    return tensor_peak(step, contender.resident()).added


def _names(names: Iterable[str], tokens: int) -> list[str]:
    if tokens < 1:
        raise UserError(f"--tokens {tokens} does not work; give at least 1")
    # A set would not keep the order.
    return list(dict.fromkeys([FULL, *(n if n == LORA else find_grid(n).name for n in names)]))


def _contenders(stack: Stack, names: Iterable[str], tokens: int) -> list[Contender]:
    return [Contender(stack, name) for name in _names(names, tokens)]
