"""Which layers a model does not use as layers: it reads their weights itself, or never calls them.

A layer on a grid computes what it was trained for when it is called. A model that takes the weight
of a layer and multiplies by itself (Mamba's kernels in training, its step sizes always) goes around
the layer, and would not see the grid; one that never calls the layer sees nothing of it at all.
Which layers these are is found by running the model without values, in training and in evaluation,
and watching. Where that run cannot end, because what is computed depends on values (a mixture of
experts), the source of what was not reached is read.
"""

import ast
import contextlib
import copy
import inspect
import textwrap
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from lrqat.models.weight_misfits import quiet_loading
from lrqat.without_values import WithoutValues

READ_AROUND = "its model reads the weight itself, and would not see the grid"
UNUSED = "its model never uses it"

_LAYERS = (nn.Linear, Conv1D, nn.Embedding)
_TOKENS = 8
_MODES = (True, False)  # training and evaluation
# What may be asked of a weight without a use of its values.
_PROPERTIES = {"dtype", "device", "shape", "ndim", "size", "dim", "numel", "is_meta"}


def misused_layers(model: Any) -> dict[str, str]:
    """Why a linear layer or embedding of `model` cannot be on a grid, by its name.

    Args:
        model: of transformers, on any device; its class and configuration are used, nothing is
            changed. Of others nothing is known.
    """
    if not isinstance(model, PreTrainedModel):
        return {}
    seen = _Seen()
    with torch.random.fork_rng(devices=[]), quiet_loading(bar=False), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.device("meta"):
            watched = type(model)(copy.deepcopy(model.config))
        layers = dict(_watch(watched, seen))
        for training in _MODES:
            _run(watched, training)
    ended = set.intersection(*(seen.ended[mode] for mode in _MODES))
    read = set(seen.read)
    if "" not in ended:
        read |= {name for name, owner in _read_in_source(watched) if owner not in ended}
        return dict.fromkeys(sorted(read), READ_AROUND)
    found = dict.fromkeys((name for name in layers if name not in seen.called), UNUSED)
    return found | dict.fromkeys(sorted(read), READ_AROUND)


@dataclass
class _Seen:
    """What the layers of a model did.

    Attributes:
        called: names of layers that were called.
        read: names of layers whose weight somebody else asked for.
        ended: names of the modules that came to their end, in training and in evaluation.
    """

    called: set[str] = field(default_factory=set)
    read: set[str] = field(default_factory=set)
    ended: dict[bool, set[str]] = field(default_factory=lambda: {mode: set() for mode in _MODES})


def _watch(model: nn.Module, seen: _Seen) -> Iterator[tuple[str, nn.Module]]:
    """Make every layer of `model` tell `seen`; yields them."""
    for name, module in model.named_modules():
        module.register_forward_hook(_note_end(seen, name))
        if isinstance(module, _LAYERS):
            module.__dict__.update(_seen=seen, _name=name, _busy=False)
            kind: Any = type(module)
            module.__class__ = _telling(kind)
            yield name, module


def _note_end(seen: _Seen, name: str) -> Callable[..., None]:
    def hook(module: nn.Module, *_: Any) -> None:
        seen.ended[module.training].add(name)

    return hook


@cache
def _telling(kind: Any) -> Any:
    """A class of layers as `kind` whose members tell when they are called, or their weight read."""

    class Telling(kind):
        def __getattr__(self, name: str) -> Any:
            if name == "weight" and not self._busy:
                self._seen.read.add(self._name)
            return super().__getattr__(name)

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            self._seen.called.add(self._name)
            self._busy = True
            try:
                return super().forward(*args, **kwargs)
            finally:
                self._busy = False

    return Telling


def _run(model: Any, training: bool) -> None:
    """Run a meta model on some tokens, as far as it goes."""
    ids = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    # Foreign code without values: it fails as it likes.
    with contextlib.suppress(Exception), WithoutValues():
        model.train(training)(input_ids=ids, use_cache=False)


def _read_in_source(model: nn.Module) -> Iterator[tuple[str, str]]:
    """(layer, module) where the source of a module's class takes the weight of a layer in it."""
    for owner, module in model.named_modules():
        kind: Any = type(module)
        for path in _weights_in(kind):
            layer: Any = module
            for part in path:
                layer = getattr(layer, part, None)
            if isinstance(layer, _LAYERS):
                yield ".".join(filter(None, (owner, *path))), owner


@cache
def _weights_in(kind: Any) -> frozenset[tuple[str, ...]]:
    """The x.y of every `self.x.y.weight` in the methods of a class, but for its construction."""
    found: set[tuple[str, ...]] = set()
    for base in kind.__mro__:
        if not issubclass(base, nn.Module) or base.__module__.startswith("torch."):
            continue
        for name, function in vars(base).items():
            if inspect.isfunction(function) and name not in ("__init__", "_init_weights"):
                found |= _weights_in_function(inspect.unwrap(function))
    return frozenset(found)


def _weights_in_function(function: Any) -> set[tuple[str, ...]]:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError):  # made at run time, or its file is gone
        return set()
    asked = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr in _PROPERTIES
    }
    weights = (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "weight" and node not in asked
    )
    return {path for path in map(_path, weights) if path}


def _path(node: ast.expr) -> tuple[str, ...]:
    """x, y of the expression `self.x.y`; nothing of another."""
    if not isinstance(node, ast.Attribute):
        return ()
    if isinstance(node.value, ast.Name):
        return (node.attr,) if node.value.id == "self" else ()
    before = _path(node.value)
    return (*before, node.attr) if before else ()
