"""What each model architecture is called and how it is laid out in llama.cpp, one module each.

A module dropped in here is registered. It defines `ARCHITECTURE`, an `Architecture` entry.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from exporters.gguf.key_values import KeyValue
from lrqat.errors import ExportRefusedError

Config = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """One entry of the table.

    Attributes:
        hf_names: values of config.json's `architectures` that it serves.
        arch: llama.cpp's architecture; names of tensors follow from it.
        refuses: config -> what llama.cpp's graph for it cannot compute (empty: nothing).
        hyperparameters: config -> metadata that the graph needs.
        row_order: (config, name of a module or tensor without ".weight") -> source row of each row
            of the GGUF tensor, or None if rows keep their order.
        computed: config -> tensors that no checkpoint holds, float32 by GGUF name.
        global_tensors: kinds of tensor that must be there once.
        block_tensors: kinds of tensor that must be there in every block.
    """

    hf_names: tuple[str, ...]
    arch: gguf.MODEL_ARCH
    refuses: Callable[[Config], list[str]]
    hyperparameters: Callable[[Config], list[KeyValue]]
    row_order: Callable[[Config, str], NDArray[np.intp] | None]
    computed: Callable[[Config], dict[str, NDArray[np.float32]]]
    global_tensors: tuple[gguf.MODEL_TENSOR, ...]
    block_tensors: tuple[gguf.MODEL_TENSOR, ...]

    @property
    def name(self) -> str:
        """The value of general.architecture."""
        return gguf.MODEL_ARCH_NAMES[self.arch]

    def required_names(self, blocks: int) -> list[str]:
        """GGUF names of the weights that a model of `blocks` blocks cannot do without."""
        once = [f"{gguf.TENSOR_NAMES[kind]}.weight" for kind in self.global_tensors]
        return once + [
            f"{gguf.TENSOR_NAMES[kind].format(bid=block)}.weight"
            for block in range(blocks)
            for kind in self.block_tensors
        ]


@cache
def _entries() -> dict[str, Architecture]:
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [importlib.import_module(f"{__name__}.{name}").ARCHITECTURE for name in modules]
    return {hf_name: entry for entry in found for hf_name in entry.hf_names}


def find_architecture(config: Config) -> Architecture:
    """The entry for config.json's `architectures`. Raises ExportRefusedError listing the known."""
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    entry = _entries().get(name) if isinstance(name, str) else None
    if entry:
        return entry
    raise ExportRefusedError(
        f"the architecture {name!r} has no entry for GGUF; known are {', '.join(_entries())}. "
        "Add one file to exporters/gguf/architectures, or export ONNX"
    )
