"""What the product of a module is multiplied with.

    s = alpha / r, or alpha / sqrt(r) of rank-stabilised LoRA

Rank and alpha may be a module's own. Source: peft, utils/other.py `get_pattern_key`.
"""

import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from lrqat.errors import ModelError
from lrqat.models.adapters.remedy import INSTEAD

_PLAIN = re.compile(r"[\w.]+")


def scale_of(folder: Path, config: dict[str, Any], module: str, a: Tensor) -> float:
    """S of a module.

    Args:
        folder: of the adapter, for messages.
        config: adapter_config.json.
        module: its name.
        a: its A, (r, in).

    Raises:
        ModelError: rank or alpha are no numbers, or not those of A; or patterns for them are
            expressions.
    """
    rank = _of_module(folder, config.get("rank_pattern"), module, config.get("r"))
    alpha = _of_module(folder, config.get("alpha_pattern"), module, config.get("lora_alpha"))
    numbers = all(type(n) in (int, float) and 0 < n < 1e9 for n in (rank, alpha))
    if not numbers or rank != len(a):
        raise ModelError(
            f"{folder} says rank {rank!r:.20} and alpha {alpha!r:.20} of {module}, whose matrices "
            f"have rank {len(a)}; use an intact copy"
        )
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _of_module(folder: Path, patterns: Any, module: str, otherwise: Any) -> Any:
    """The value of the first name that a module's name is or ends with; others are expressions."""
    for name, value in patterns.items() if isinstance(patterns, dict) else ():
        plain = name.removeprefix("^")
        if not _PLAIN.fullmatch(plain):
            raise ModelError(
                f"{folder} cannot be merged here: {name!r:.80} is an expression and no name of "
                f"modules; {INSTEAD}"
            )
        if module == plain or (plain == name and module.endswith(f".{name}")):
            return value
    return otherwise
