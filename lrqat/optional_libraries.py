"""Libraries that not everybody needs: imported when they are asked for, and named where missing."""

import importlib
import importlib.util
from typing import Any

from lrqat.errors import RuntimeUnavailableError, first_line


def load(module: str, install: str, *, needed_by: str = "", otherwise: str = "") -> Any:
    """Import a library that may be missing.

    Args:
        module: what is imported; its distribution has the same name, with hyphens.
        install: what pip is given, as in "lrqat[onnx]".
        needed_by: what cannot be done without it, as in "completion scripts".
        otherwise: what can be done without it, as in "use --optimizer adamw".

    Raises:
        RuntimeUnavailableError: it, or a library of its own, is not installed; or it does not load.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        name = _distribution(error.name or module)
        raise RuntimeUnavailableError(missing(name, install, needed_by, otherwise)) from None
    except ImportError as error:  # it is there, and a library of the system's is not
        raise RuntimeUnavailableError(
            f"{_distribution(module)} is installed and does not load ({first_line(error):.200}); "
            f"install it again: pip install --force-reinstall '{install}'{_or(otherwise)}"
        ) from None


def refuse_missing(module: str, install: str) -> None:
    """Raise RuntimeUnavailableError if `module`, which runs elsewhere, is not installed."""
    try:
        found = importlib.util.find_spec(module) is not None
    except ValueError:  # in place of a module there is something that is none
        found = False
    if not found:
        raise RuntimeUnavailableError(missing(_distribution(module), install))


def missing(library: str, install: str, needed_by: str = "", otherwise: str = "") -> str:
    """The one sentence about a library that is not installed; see `load`."""
    said = f"{needed_by} needs {library}, which is" if needed_by else f"{library} is"
    return f"{said} not installed: pip install '{install}'{_or(otherwise)}"


def _or(otherwise: str) -> str:
    return f", or {otherwise}" if otherwise else ""


def _distribution(module: str) -> str:
    return module.split(".")[0].replace("_", "-")
