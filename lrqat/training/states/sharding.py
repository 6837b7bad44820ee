"""Parameters that FSDP2 has split over the ranks: seeing them whole, and putting values back.

Everything here does nothing to a model that is not sharded, so callers need not ask.
"""

import copy
from collections.abc import Iterator
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn

if dist.is_available():
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.tensor import DTensor, distribute_tensor


def full(tensor: Tensor) -> Tensor:
    """The whole tensor. Of a sharded one: gathered, so every rank must call this."""
    if _is_sharded(tensor):
        return tensor.full_tensor()
    return tensor


def shard_like(whole: Tensor, example: Tensor) -> Tensor:
    """`whole` on the device of `example`, and this rank's part of it if `example` is sharded.

    No communication: every rank must hold the same `whole`.
    """
    whole = whole.to(example.device)
    if _is_sharded(example):
        mesh, placements = example.device_mesh, example.placements
        return distribute_tensor(whole, mesh, placements, src_data_rank=None)
    return whole


def whole_parts(model: nn.Module) -> Iterator[nn.Module]:
    """Modules that together are `model`, each with its parameters whole while it is the current.

    A model that is not sharded is its own only part. One that is comes a unit of FSDP at a time, so
    no rank ever holds more than one unit beside its shards; inner units come before the unit that
    contains them, whose own parameters alone are then whole. Every rank must go through all parts.
    """
    units = _units(model)
    if not units:
        yield model
    for unit in reversed(units):
        unit.unshard()
        try:
            yield unit
        finally:
            unit.reshard()


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of `model` without its parameters' values, which `fill` puts back.

    FSDP changes a module in place and for good: its class, its hooks, what `state_dict` gives. The
    copy, made before that, has none of it. Its parameters take no memory; buffers are shared.
    """
    memo: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    for parameter in model.parameters():
        empty = torch.empty_like(parameter, device="meta")
        memo[id(parameter)] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, memo)


def fill(bare: nn.Module, model: nn.Module) -> nn.Module:
    """Give `bare`, the skeleton of `model`, the whole parameters of `model`; returns it.

    For measuring and writing what FSDP has trained. Every rank must call this, and needs room for
    the whole model.
    """
    made: dict[int, nn.Parameter] = {}  # tied parameters stay tied
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) not in made:
            whole = full(parameter.detach())
            made[id(parameter)] = nn.Parameter(whole, requires_grad=parameter.requires_grad)
        owner, _, last = name.rpartition(".")
        setattr(bare.get_submodule(owner), last, made[id(parameter)])
    return bare


def _is_sharded(tensor: Tensor) -> "TypeGuard[DTensor]":
    return dist.is_available() and isinstance(tensor, DTensor)


def _units(model: nn.Module) -> list[Any]:
    if not dist.is_available():
        return []
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
