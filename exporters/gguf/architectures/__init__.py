"""What each model architecture is called and how it is laid out in llama.cpp, one module each.

A module dropped in here is registered. It defines `ARCHITECTURE`, an entry of the form in
`exporters.gguf.architecture`. What decoders have in common is not repeated in entries: names come
from gguf's `TensorNameMap`, key/values and refusals from `exporters.gguf.graph`.
"""

import importlib
import pkgutil
from functools import cache

from exporters.gguf.architecture import Architecture, Config
from lrqat.errors import ExportRefusedError


@cache
def _entries() -> dict[str, Architecture]:
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [importlib.import_module(f"{__name__}.{name}").ARCHITECTURE for name in modules]
    return {hf_name: entry for entry in found for hf_name in entry.hf_names}


def known_architectures() -> tuple[str, ...]:
    """Names, as in config.json's `architectures`, that have an entry."""
    return tuple(_entries())


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
