"""What of a folder's genai_config.json reaches ONNX Runtime GenAI.

The file can name a native library that the runtime loads (`custom_ops_library`), files to write
(profiles, optimised graphs), devices, and further models. Whoever measures a folder wants none of
that, so the runtime is given a configuration that is written here: the keys below, each with a
value of the form that is said here. Everything else in the file is left out, and named.

Source: onnxruntime-genai, src/config.cpp.
"""

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lrqat.errors import UserError
from lrqat.foreign_files import read_json

FILE_NAME = "genai_config.json"
Check = Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**31


def _are_ids(value: Any) -> bool:
    ids = value if isinstance(value, list) else [value]
    return 0 < len(ids) <= 1000 and all(map(_is_count, ids))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_name(value: Any) -> bool:
    """Of an architecture, an input or an output, with at most one place for a layer's number."""
    plain = isinstance(value, str) and re.fullmatch(r"[A-Za-z0-9_./%-]{1,200}", value)
    return bool(plain) and value.replace("%d", "", 1).count("%") == 0


def _is_the_model(value: Any) -> bool:
    return value == "model.onnx"


def _is_level(value: Any) -> bool:
    return value in ("0", "1", "2", "3", "4")


_NAMES = {
    "inputs": (
        "input_ids", "attention_mask", "position_ids", "past_key_names", "past_value_names",
    ),
    "outputs": ("logits", "present_key_names", "present_value_names"),
}  # fmt: skip
_COUNTS = (
    "head_size", "hidden_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers",
)  # fmt: skip
# How quantised products are computed; their values are numbers, and they reach no file.
_ENTRY = re.compile(r"session\.([a-z_]*matmulnbits[a-z_]*|x64quantprecision)")
_FORM: dict[str, Any] = {
    "model": {
        "type": _is_name,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), _are_ids),
        **dict.fromkeys(("context_length", "vocab_size"), _is_count),
        "decoder": {
            "filename": _is_the_model,
            **dict.fromkeys(_COUNTS, _is_count),
            **{part: dict.fromkeys(names, _is_name) for part, names in _NAMES.items()},
            "session_options": {_ENTRY: _is_level},
        },
    },
    "search": {
        **dict.fromkeys(("do_sample", "early_stopping", "past_present_share_buffer"), _is_flag),
        **dict.fromkeys(
            ("max_length", "min_length", "num_beams", "num_return_sequences", "top_k",
             "no_repeat_ngram_size"),
            _is_count,
        ),
        **dict.fromkeys(
            ("diversity_penalty", "length_penalty", "repetition_penalty", "temperature", "top_p"),
            _is_number,
        ),
    },
}  # fmt: skip
# What every file of the builder says and we say anyway.
_OURS = {"log_id": "onnxruntime-genai", "provider_options": []}


def read_genai_config(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What of a folder's genai_config.json may reach the runtime.

    Args:
        folder: from the ONNX exporter, or from anybody.

    Returns:
        The configuration, and what was left out, as "model.decoder.session_options.x".

    Raises:
        UserError: the file cannot be read, or a value that is needed is of another form.
    """
    path = folder / FILE_NAME
    left_out: list[str] = []
    try:
        config = _checked(read_json(path), _FORM, "", left_out)
        options = config["model"]["decoder"].setdefault("session_options", {})
    except (ValueError, KeyError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(
            f"{path} cannot be used: {what}; export the folder again, or correct the file"
        ) from None
    options |= _OURS
    return config, left_out


def _checked(given: Any, form: dict[Any, Any], at: str, left_out: list[str]) -> dict[str, Any]:
    """The keys of `given` that `form` has; the others go to `left_out`. Raises ValueError."""
    if not isinstance(given, dict):
        raise ValueError(f"{at or 'it'} is no object")
    made: dict[str, Any] = {}
    for key, value in given.items():
        place = f"{at}.{key}".lstrip(".")
        check = form.get(key) or next((form[p] for p in form if _matches(p, key)), None)
        if check is None:
            if _OURS.get(key) != value:
                left_out.append(place)
        elif isinstance(check, dict):
            made[key] = _checked(value, check, place, left_out)
        elif check(value):
            made[key] = value
        else:
            raise ValueError(f"{place} is {value!r:.60}")
    return made


def _matches(pattern: Any, key: str) -> bool:
    return isinstance(pattern, re.Pattern) and pattern.fullmatch(key) is not None
