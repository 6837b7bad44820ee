"""Weights that are not the model's: found by what transformers reports, and refused with the cure.

transformers fills what a file lacks with random numbers and leaves out what it does not expect.
Neither may pass for the model. What it leaves out on purpose (old buffers of rotary frequencies,
layers that only other classes have) is harmless, and named.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from lrqat.errors import ModelError

_SHOWN = 3
# Buffers that models of today compute, under the names that older files have.
_OLD_BUFFERS = r"(^|\.)(inv_freq|position_ids|masked_bias|num_batches_tracked)$"
# What programs put into the names of a model that they wrap.
_WRAPPERS = {
    "_orig_mod.": "torch.compile puts it there; save the state of model._orig_mod",
    "_checkpoint_wrapped_module.": "activation checkpointing puts it there",
    "_fsdp_wrapped_module.": "FSDP puts it there; save the full state of the model",
    "module.": "DataParallel puts it there; save the state of model.module",
}
_ADAPTER = re.compile(
    r"\.lora_|\.base_layer\.|(^|\.)base_model\.model\.|\.modules_to_save\.|\.ia3_"
)
_QUANTIZED = re.compile(
    r"(_scale|_scale_inv|_scale_2|weight_packed|weight_shape|qweight|qzeros|g_idx|scales?|"
    r"absmax|quant_map|nested_\w+|quant_state\.\S+|SCB|zero_points?|_blocks|_scales|_amax|"
    r"input_min|input_max)$"
)
_TASK_HEAD = re.compile(r"^(score|classifier|qa_outputs|v_head|value_head|reward_head|\w*_head)\.")
_LAYER = re.compile(r"\.(?:layers|h|blocks|block)\.(\d+)\.")


@dataclass(frozen=True)
class Misfit:
    """How the tensors of a file differ from the parameters of a model.

    Attributes:
        missing: parameters that no tensor fills, sorted.
        unexpected: tensors that have no place, sorted.
        reshaped: (parameter, shape in the file, shape in the model).
        layers: of the model by its configuration, None if it does not say.
    """

    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    reshaped: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()
    layers: int | None = None

    @classmethod
    def of(cls, model: Any, info: Mapping[str, Any]) -> "Misfit":
        """From the loading info that `from_pretrained` returns beside `model`."""
        harmless = re.compile(_OLD_BUFFERS)
        return cls(
            tuple(sorted(map(str, info["missing_keys"]))),
            tuple(sorted(n for n in map(str, info["unexpected_keys"]) if not harmless.search(n))),
            tuple(sorted((n, tuple(a), tuple(b)) for n, a, b in info["mismatched_keys"])),
            getattr(model.config.get_text_config(), "num_hidden_layers", None),
        )

    def __bool__(self) -> bool:
        """Whether they differ."""
        return bool(self.missing or self.unexpected or self.reshaped)

    def describe(self) -> str:
        """What differs, naming tensors, and what to do."""
        parts = []
        if self.missing:
            parts.append(f"{_count(self.missing)} missing ({_some(self.missing)})")
        if self.unexpected:
            parts.append(f"{_count(self.unexpected)} unknown to it ({_some(self.unexpected)})")
        parts += [
            f"{name} has shape {stored}, and the model's configuration asks for {asked}"
            for name, stored, asked in self.reshaped[:_SHOWN]
        ]
        cure = next(filter(None, (find(self) for find in _CURES)), _NO_CURE)
        return f"{'; '.join(parts)}. {cure}"


def _adapter(misfit: Misfit) -> str | None:
    found = sorted(filter(_ADAPTER.search, misfit.unexpected), key=lambda name: "lora_" not in name)
    if not found:
        return None
    return (
        f"{found[0]} belongs to a PEFT adapter that was not merged: merge it "
        "(PeftModel.from_pretrained(...).merge_and_unload()) and save the model"
    )


def _quantized(misfit: Misfit) -> str | None:
    found = next(filter(_QUANTIZED.search, misfit.unexpected), None)
    if found is None:
        return None
    return (
        f"{found} belongs to a quantized model, whose weights are nothing without it: train its "
        "floating-point original, or take it over as it is with `lrqat import`"
    )


def _prefix(misfit: Misfit) -> str | None:
    wanted = set(misfit.missing)
    for wrapper, reason in _WRAPPERS.items():
        if any(n.replace(wrapper, "") in wanted for n in misfit.unexpected if wrapper in n):
            return f"Remove {wrapper!r} from the names: {reason}"
    first = next((n for n in misfit.unexpected if _shortened(n) & wanted), None)
    if first is None:
        return None
    end = max(_shortened(first) & wanted, key=len)
    return f"The names begin with {first.removesuffix(end)!r}; remove that from them"


def _shortened(name: str) -> set[str]:
    """`name` without its first parts."""
    parts = name.split(".")
    return {".".join(parts[i:]) for i in range(1, len(parts))}


def _task_head(misfit: Misfit) -> str | None:
    found = next(filter(_TASK_HEAD.search, misfit.unexpected), None)
    if found is None:
        return None
    return f"{found} is a head for another task; give the language model that it was made from"


def _further_layers(misfit: Misfit) -> str | None:
    if misfit.layers is None or not misfit.unexpected:
        return None
    numbers = [_LAYER.search(name) for name in misfit.unexpected]
    if not all(found and int(found[1]) >= misfit.layers for found in numbers):
        return None
    return (
        f"config.json's num_hidden_layers is {misfit.layers}, and the files hold further layers; "
        "put it right"
    )


def _biases(misfit: Misfit) -> str | None:
    if not misfit.unexpected or not all(name.endswith(".bias") for name in misfit.unexpected):
        return None
    return (
        "The files hold biases that config.json does not ask for (settings such as attention_bias "
        "or mlp_bias); put it right, or give the architecture that has them"
    )


def _head(misfit: Misfit) -> str | None:
    if misfit.unexpected or len(misfit.missing) != 1 or "head" not in misfit.missing[0]:
        return None
    return (
        "The files hold no output head: if the model uses its embedding as one, set "
        "tie_word_embeddings to true in config.json"
    )


_CURES: tuple[Callable[[Misfit], str | None], ...] = (
    _adapter, _quantized, _prefix, _task_head, _further_layers, _biases, _head,
)  # fmt: skip
_NO_CURE = "Use weights and a config.json that belong together"


def refuse_misfit(name: str, model: Any, info: Mapping[str, Any]) -> None:
    """Raise ModelError, with the cure, if the files of `name` are not those of `model`.

    Args:
        name: folder or hub id, for the message.
        model: what `from_pretrained` made.
        info: the loading info that it returned with it.
    """
    misfit = Misfit.of(model, info)
    if misfit:
        raise ModelError(
            f"the weights of {name!r} are not those that its config.json asks for, a "
            f"{type(model).__name__}: {misfit.describe()}"
        )


def unused_tensors(model: Any, names: Iterable[str]) -> list[str]:
    """Those of the tensors `names` that transformers leaves out on purpose, sorted."""
    known = model.state_dict().keys()
    patterns = [_OLD_BUFFERS, *(model._keys_to_ignore_on_load_unexpected or ())]
    ignored = re.compile("|".join(f"({pattern})" for pattern in patterns))
    return sorted(name for name in names if name not in known and ignored.search(name))


def refuse_not_finite(name: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Raise ModelError if a floating tensor of `name` holds NaN or infinity; it is named."""
    for tensor, value in tensors:
        if value.is_floating_point() and not value.is_meta and not torch.isfinite(value).all():
            narrow = value.dtype == torch.float16
            hint = ", or --dtype float32 if its numbers pass float16's largest" if narrow else ""
            raise ModelError(
                f"{tensor} holds NaN or infinity; use an intact copy of the model {name!r}{hint}"
            )


@contextmanager
def quiet_loading(*, bar: bool = True) -> Iterator[None]:
    """Transformers without its report of what does not fit, which `refuse_misfit` says."""
    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    if not bar:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown and not bar:
            logging.enable_progress_bar()


def _count(names: tuple[str, ...]) -> str:
    return "1 tensor is" if len(names) == 1 else f"{len(names)} tensors are"


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
