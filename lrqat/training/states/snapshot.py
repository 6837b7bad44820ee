"""An optimiser and the random generators as plain tensors and JSON, and back.

Tensors go to safetensors by name, everything else is numbers and text. Nothing is pickled, so a
saved state can be read without running what is in it.
"""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrqat.errors import CheckpointError
from lrqat.training.states.sharding import full, shard_like

Named = dict[str, nn.Parameter]


def optimizer_snapshot(optimizer: Any, named: Named) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """What an optimiser remembers.

    Args:
        optimizer: one made by `lrqat.training.optimizers`, or a wrapper of it by Accelerate.
        named: the trained parameters by name. Sharded ones are gathered: every rank must call.

    Returns:
        CPU tensors by "<parameter>.<key>", and JSON with the parameter groups (parameters by name)
        and the entries that are numbers.
    """
    names = {id(parameter): name for name, parameter in named.items()}
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, dict[str, Any]] = {}
    for parameter, entries in optimizer.state.items():
        name = names[id(parameter)]
        for key, value in entries.items():
            if isinstance(value, Tensor):
                # A copy: some libraries share one table among parameters, which files do not.
                tensors[f"{name}.{key}"] = full(value.detach()).cpu().clone().contiguous()
            else:
                numbers.setdefault(name, {})[key] = value
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        | {"params": [names[id(parameter)] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    return tensors, {"groups": groups, "numbers": numbers}


def restore_optimizer(
    optimizer: Any, named: Named, tensors: dict[str, Tensor], saved: dict[str, Any]
) -> None:
    """Put a snapshot back, in place.

    Raises:
        CheckpointError: the snapshot is of other parameters.
    """
    names = {id(parameter): name for name, parameter in named.items()}
    own = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
    if own != [group["params"] for group in saved["groups"]]:
        raise CheckpointError(
            "the saved optimiser trained other parameters; resume with the settings that the run "
            "was started with"
        )
    for group, values in zip(optimizer.param_groups, saved["groups"], strict=True):
        for key, value in values.items():
            if key != "params":  # JSON has no tuples, and betas are one
                group[key] = tuple(value) if isinstance(value, list) else value
    optimizer.state.clear()
    for name, values in saved["numbers"].items():
        optimizer.state[named[name]].update(values)
    for entry, tensor in tensors.items():
        name, _, key = entry.rpartition(".")
        parameter = named[name]
        # torch keeps the count of steps on the CPU, and only what has the parameter's shape is
        # sharded with it.
        if key != "step":
            like = parameter.shape == tensor.shape
            tensor = shard_like(tensor, parameter) if like else tensor.to(parameter.device)
        optimizer.state[parameter][key] = tensor


def random_snapshot() -> dict[str, Tensor]:
    """The state of this process's generators: Python's, NumPy's, torch's, and CUDA's if in use.

    Returns:
        CPU tensors: `python` int64 (625,), `numpy` int64 (626,): the words, then the position and
        whether a Gaussian number is held back; `held_back` float64 (2,): those numbers, of Python
        and of NumPy, NaN where there is none; `torch` and `cuda` uint8.
    """
    _, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002
    assert name == "MT19937"
    held_back = [torch.nan if gauss is None else gauss, cached]
    snapshot = {
        "python": torch.tensor(words, dtype=torch.int64),
        "numpy": torch.tensor([*map(int, keys), position, has_gauss], dtype=torch.int64),
        "held_back": torch.tensor(held_back, dtype=torch.float64),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        snapshot["cuda"] = torch.cuda.get_rng_state()
    return snapshot


def restore_random(snapshot: dict[str, Tensor]) -> None:
    """Put this process's generators back to a snapshot, except CUDA's where there is none."""
    gauss, cached = snapshot["held_back"].tolist()
    random.setstate((3, tuple(snapshot["python"].tolist()), None if gauss != gauss else gauss))
    *keys, position, has_gauss = snapshot["numpy"].tolist()
    words = np.array(keys, dtype=np.uint32)
    np.random.set_state(("MT19937", words, position, has_gauss, cached))  # noqa: NPY002
    torch.set_rng_state(snapshot["torch"])
    if "cuda" in snapshot and torch.cuda.is_available():
        torch.cuda.set_rng_state(snapshot["cuda"])
