"""The optimisers, and which rate each trained parameter gets."""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from lrqat import optional_libraries
from lrqat.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

# Last component of a parameter's name -> the rate it learns at.
RATE_OF = {
    "lora_a": "low_rank",
    "lora_b": "low_rank",
    "scale": "scale",
    "minimum": "scale",
    "original": "scale",  # of the weight of a norm, see `lrqat.layers.norms`
    "weight": "weight",
}
Groups = list[dict[str, Any]]


def _adamw(groups: Groups, **settings: Any) -> "torch.optim.Optimizer":
    import torch

    return torch.optim.AdamW(groups, **settings)


def _adamw8bit(groups: Groups, **settings: Any) -> "torch.optim.Optimizer":
    """Both moments in 8 bits, a scale every 256 entries; below 4096 entries in float32."""
    return _bitsandbytes().optim.AdamW8bit(groups, **settings)


OPTIMIZERS: dict[str, Callable[..., "torch.optim.Optimizer"]] = {
    "adamw": _adamw,
    "adamw8bit": _adamw8bit,
}


def refuse_unavailable(name: str) -> None:
    """Raise UserError if there is no optimiser `name`, or its library is not installed."""
    if name not in OPTIMIZERS:
        raise UserError(f"--optimizer {name!r} is unknown; choose {', '.join(OPTIMIZERS)}")
    if name == "adamw8bit":
        _bitsandbytes()


def make_optimizer(
    name: str,
    parameters: "Iterable[tuple[str, nn.Parameter]]",
    rates: Mapping[str, float],
    *,
    betas: tuple[float, float],
    weight_decay: float,
    factors: Mapping[str, float] | None = None,
) -> "torch.optim.Optimizer":
    """An optimiser with one group of parameters for every rate that occurs.

    Args:
        name: a name in `OPTIMIZERS`.
        parameters: names and parameters to train.
        rates: peak rate by its name: the values of `RATE_OF`.
        betas: decay of the first and second moment.
        weight_decay: decoupled, the same for all.
        factors: what the rates of parameters are multiplied by, by name; see
            `lrqat.training.rates`. Those that are not named have 1.

    Raises:
        UserError: no such optimiser, or its library is not installed.
        ValueError: a parameter that no rate is known for.
    """
    refuse_unavailable(name)
    groups: dict[tuple[str, float], list[nn.Parameter]] = {}
    for full_name, parameter in parameters:
        factor = (factors or {}).get(full_name, 1.0)
        groups.setdefault((_rate_of(full_name), factor), []).append(parameter)
    order = list(dict.fromkeys(RATE_OF.values()))
    return OPTIMIZERS[name](
        [
            {"params": groups[key], "lr": rates[key[0]] * key[1]}
            for key in sorted(groups, key=lambda key: (order.index(key[0]), key[1]))
        ],
        betas=betas,
        weight_decay=weight_decay,
    )


def rates_in_use(model: "nn.Module", rates: Mapping[str, float]) -> dict[str, float]:
    """Those of `rates` that some trained parameter of a model learns at."""
    used = {_rate_of(name) for name, p in model.named_parameters() if p.requires_grad}
    return {name: rate for name, rate in rates.items() if name in used}


def _rate_of(name: str) -> str:
    last = name.rpartition(".")[2]
    if last not in RATE_OF:
        raise ValueError(f"no learning rate is known for the parameter {name}; see RATE_OF")
    return RATE_OF[last]


def _bitsandbytes() -> Any:
    return optional_libraries.load(
        "bitsandbytes",
        "lrqat[optim8bit]",
        needed_by="--optimizer adamw8bit",
        otherwise="use --optimizer adamw",
    )
