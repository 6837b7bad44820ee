"""Which tensors of a model's files are which of its parameters.

transformers renames tensors while it loads them, and merges some: experts that the files hold one
by one are one parameter of the model. Its own table of that (`conversion_mapping`) is asked, so
nobody keeps a list of models here.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    WeightConverter,
    WeightRenaming,
    rename_source_key,
)

_OF_AN_EXPERT = re.compile(r"\.(\d{1,9})\.[^.]+\.weight$")  # experts.17.up_proj.weight


def tensors_by_parameter(skeleton: Any, tensors: Iterable[str]) -> dict[str, str]:
    """Parameter of the model -> which tensor of the files it is, if not merged of several."""
    return {name: tensor for tensor, name, merged in _renamed(skeleton, tensors) if merged is None}


def experts_by_parameter(skeleton: Any, tensors: Iterable[str]) -> dict[str, list[list[str]]]:
    """Stack of experts -> for each expert, the tensors of the files that make it.

    The rows of an expert's matrix are those of its tensors, one tensor after the other: gate and
    up, for instance. A stack of which the files lack a tensor is left out.

    Args:
        skeleton: the model, on any device.
        tensors: names of those in the files.
    """
    parts = {
        pattern: (place, len(converter.source_patterns))
        for converter in _converters(skeleton)
        if _stacks_rows(converter)
        for place, pattern in enumerate(converter.source_patterns)
    }
    found: dict[str, dict[tuple[int, int], str]] = {}
    wanted: dict[str, int] = {}
    for tensor, name, merged in _renamed(skeleton, tensors):
        number = _OF_AN_EXPERT.search(tensor)
        if number and merged in parts:
            place, wanted[name] = parts[merged]
            found.setdefault(name, {})[int(number[1]), place] = tensor
    stacks = {}
    for name, of_stack in found.items():
        experts = len(skeleton.get_parameter(name))
        places = [[(i, place) for place in range(wanted[name])] for i in range(experts)]
        if len(of_stack) == experts * wanted[name] and all(
            p in of_stack for e in places for p in e
        ):
            stacks[name] = [[of_stack[place] for place in expert] for expert in places]
    return stacks


def _renamed(skeleton: Any, tensors: Iterable[str]) -> Iterator[tuple[str, str, str | None]]:
    """Tensor, its parameter, and the pattern of transformers' by which it is merged with others."""
    transforms = get_model_conversion_mapping(skeleton)
    renamings = [each for each in transforms if isinstance(each, WeightRenaming)]
    converters = _converters(skeleton)
    parameters, prefix = skeleton.state_dict(), skeleton.base_model_prefix
    for tensor in sorted(tensors):
        name, merged = rename_source_key(tensor, renamings, converters, prefix, parameters)
        if name in parameters:
            yield tensor, name, merged


def _converters(skeleton: Any) -> list[WeightConverter]:
    transforms = get_model_conversion_mapping(skeleton)
    return [each for each in transforms if isinstance(each, WeightConverter)]


def _stacks_rows(converter: WeightConverter) -> bool:
    """Whether what it merges are rows of experts, in order."""
    first, *others = converter.operations
    return (
        isinstance(first, MergeModulelist)
        and first.dim == 0
        and all(isinstance(each, Concatenate) and each.dim == 1 for each in others)
        and len(others) == (len(converter.source_patterns) > 1)
    )
