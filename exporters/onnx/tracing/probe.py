"""Whether a model can become the graph, found before anything is traced, and the form of its cache.

The model is built on the meta device and run there, first as transformers runs it, with the cache
that it makes for itself, and then as the graph will: on token ids, a mask, positions, and keys and
values of each layer. What it lacks for that is said in words, and what it makes is not taken from a
configuration, where not every architecture has it.
"""

import functools
import inspect
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.cache_utils import DynamicLayer
from transformers.pytorch_utils import Conv1D
from transformers.utils import logging

from exporters.onnx.tracing.cache import cache_form
from exporters.onnx.tracing.trace import ATTENTION, WithFlatCache, example
from lrqat.config_values import config_values
from lrqat.errors import ExportRefusedError, first_line
from lrqat.without_values import WithoutValues

_INPUTS = {
    "past_key_values": "it keeps no keys and values that a graph could take and return",
    "position_ids": "it counts positions itself (as ALiBi does), and the graph is given them",
    "attention_mask": "it takes no mask, which the graph has",
}
_ELSEWHERE = "export to GGUF, where llama.cpp may have it (`--converter`)"


class CacheShape(NamedTuple):
    """The cache of a model: of every layer, keys and values [batch, kv_heads, tokens, head_size].

    Attributes:
        layers: how many.
        kv_heads: key-value heads of each.
        head_size: numbers of a head.
    """

    layers: int
    kv_heads: int
    head_size: int


@dataclass(frozen=True)
class Probed:
    """What was found of a model.

    Attributes:
        reason: why it cannot become the graph, or None.
        cache: its form; None if there is a reason.
    """

    reason: str | None = None
    cache: CacheShape | None = None


def probe(config: dict[str, Any], attention: str = "node") -> Probed:
    """Look at the model of `config`, the content of config.json; found once for each.

    Takes a forward pass of Python code, and no memory for weights.

    Args:
        config: as the checkpoint has it.
        attention: "node" or "products", see `exporters.onnx.options`.
    """
    return _probe(json.dumps(config, sort_keys=True), attention)


@functools.lru_cache(maxsize=32)
def _probe(config: str, attention: str) -> Probed:
    try:
        with _quiet(), torch.no_grad():
            return Probed(cache=_cache_of(_built(json.loads(config), ATTENTION[attention])))
    except ExportRefusedError as error:
        return Probed(str(error))


def _refusal(reason: str, remedy: str = _ELSEWHERE) -> ExportRefusedError:
    return ExportRefusedError(f"{reason}; {remedy}")


def _built(values: dict[str, Any], options: dict[str, str]) -> Any:
    # Foreign code, here and below: it fails as it likes.
    try:
        with torch.device("meta"):
            config = AutoConfig.for_model(**config_values(values) | {"dtype": "float32"})
            return AutoModelForCausalLM.from_config(config, **options).eval()
    except Exception as error:
        raise _refusal(f"transformers cannot build its model ({first_line(error):.200})") from None


def _cache_of(model: Any) -> CacheShape:
    """The form of the cache of a meta model that can become the graph."""
    name = type(model).__name__
    experts = next(_stacks(model), None)
    if experts:
        raise _refusal(
            f"{experts} is a stack of experts, trained or not: which of them compute depends on "
            "the tokens, and the graph has nothing for that"
        )
    taken = inspect.signature(model.forward).parameters
    for argument, reason in _INPUTS.items():
        if argument not in taken:
            raise _refusal(f"{name} has no input {argument}: {reason}")
    shape = _shape(_own_cache(model))
    form = cache_form(None, False)
    inputs = example(*shape, form, model.dtype, "meta")
    with _counted(model) as calls:
        _, past = _ran(name, lambda: WithFlatCache(model, form)(*inputs))
    if len(past) != shape.layers * len(form.parts):
        raise _refusal(f"{name} returns {len(past)} keys and values of {shape.layers} layers")
    for layer, count in calls.items():
        if count != 1:
            raise _refusal(f"{name} uses {layer} {count} times, and a graph has a product for it")
    return shape


@contextmanager
def _counted(model: nn.Module) -> Iterator[Counter[str]]:
    """How often each linear layer of `model` is called inside, by its name."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    calls = Counter(dict.fromkeys(layers, 0))
    hooks = [
        module.register_forward_hook(lambda *_, name=name: calls.update([name]))
        for name, module in layers.items()
    ]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def _own_cache(model: Any) -> list[Any]:
    """The layers of the cache that a model makes for itself, each with keys and values."""
    name = type(model).__name__
    ids = torch.ones(2, 3, dtype=torch.int64, device="meta")
    cache = getattr(_ran(name, lambda: model(input_ids=ids, use_cache=True)), "past_key_values", 0)
    layers = list(getattr(cache, "layers", []))
    if not layers:
        raise _refusal(f"{name} returns no cache of keys and values")
    for i, layer in enumerate(layers):
        kind = type(layer).__name__
        if hasattr(layer, "update_conv_state"):  # some have keys and values beside it
            raise _refusal(
                f"layer {i} of {name} keeps a state of another kind ({kind}), and what the graph "
                "takes and returns are keys and values"
            )
        if not isinstance(layer, DynamicLayer) or layer.keys is None or layer.values is None:
            raise _refusal(
                f"layer {i} of {name} keeps no keys and values of its own ({kind}), and the "
                "graph's layers all do"
            )
    return layers


def _shape(layers: list[Any]) -> CacheShape:
    found = {part.shape[1::2] for layer in layers for part in (layer.keys, layer.values)}
    if len(found) > 1:
        sizes = ", ".join(f"{heads} x {size}" for heads, size in sorted(found))
        raise _refusal(
            f"its keys and values are not all alike (heads and their sizes: {sizes}), and the "
            "graph's are"
        )
    return CacheShape(len(layers), *found.pop())


def _stacks(model: nn.Module) -> Iterator[str]:
    """Modules that hold the weights of several experts in one parameter."""
    for name, module in model.named_modules():
        parameters = module.parameters(recurse=False)
        if type(module).__name__.endswith("Experts") and any(p.ndim == 3 for p in parameters):
            yield name


def _ran(name: str, run: Callable[[], Any]) -> Any:
    try:
        with WithoutValues({F.scaled_dot_product_attention: _attend}), _Types():
            return run()
    except ExportRefusedError:
        raise
    except Exception as error:
        raise _refusal(
            f"{name} cannot be run as the graph would be, without values that what it computes "
            f"depends on ({first_line(error):.200})"
        ) from None


def _attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **options: Any) -> Tensor:
    heads, others = query.shape[1], key.shape[1]
    if heads != others and not options.get("enable_gqa"):
        raise _refusal(
            f"its attention takes {heads} heads of queries and {others} of keys, of which torch "
            "makes no node",
            "use --attention products",
        )
    return F.scaled_dot_product_attention(query, key, value, *args, **options)


class _Types(TorchDispatchMode):
    """Refuses what ONNX Runtime's CPU does not compute: bfloat16, but for conversions."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        is_bfloat16 = isinstance(result, Tensor) and result.dtype == torch.bfloat16
        if is_bfloat16 and func is not torch.ops.aten._to_copy.default:
            raise _refusal(
                "its model computes in bfloat16 whatever the type of the weights (Falcon's ALiBi "
                "does), which ONNX Runtime's CPU cannot"
            )
        return result


class _quiet(warnings.catch_warnings):  # noqa: N801  (used as a function)
    """Keeps what transformers has to say off the screen."""

    def __enter__(self) -> Any:
        self._level = logging.get_verbosity()
        logging.set_verbosity_error()
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        return entered

    def __exit__(self, *failure: Any) -> None:
        super().__exit__(*failure)
        logging.set_verbosity(self._level)
