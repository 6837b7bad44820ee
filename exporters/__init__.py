"""Exporters: a fused checkpoint becomes what a runtime reads, bit for bit or not at all.

Every format is a package with the same four names:

    Options                            a frozen dataclass; each field carries its help text
    default_name(checkpoint, options)  file or folder name inside the checkpoint's folder
    plan(checkpoint, options)          pure: every tensor, its type, its bytes, every refusal
    write(plan, path, overwrite=...)   writes, reads back, verifies, renames; returns a report

`FORMATS` maps the name that `--format` takes to the package. A format is imported when it is used,
so that one can be installed without the other's dependencies.
"""

import importlib
from typing import Any

from lrqat.errors import RuntimeUnavailableError, UserError, did_you_mean

FORMATS = {
    "gguf": "exporters.gguf",
    "onnx": "exporters.onnx",
    "onnx-genai": "exporters.onnx_genai",
}


def load_format(name: str) -> Any:
    """The package of an export format.

    Raises:
        UserError: unknown format.
        RuntimeUnavailableError: its dependencies are not installed.
    """
    if name not in FORMATS:
        hint = did_you_mean(name, FORMATS)
        raise UserError(f"unknown format {name!r}: {hint}known formats are {', '.join(FORMATS)}")
    try:
        return importlib.import_module(FORMATS[name])
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"the {name} exporter needs {error.name}, which is not installed: "
            f"pip install 'lrqat[{name}]'"
        ) from None
