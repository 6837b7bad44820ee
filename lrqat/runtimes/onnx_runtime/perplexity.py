"""Perplexity of an ONNX folder, with nothing but ONNX Runtime: neither torch nor transformers.

lrqat.onnx_perplexity("runs/a/onnx", Path("text.txt").read_text()).perplexity
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrqat.errors import RuntimeUnavailableError, UserError
from lrqat.evaluation.perplexity import LogitsFunction, Perplexity, Progress, Windows, perplexity

_NUMPY = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(uint8)": np.uint8,
}


def onnx_perplexity(
    folder: str | Path,
    text: str,
    *,
    context: int = 512,
    limit: int | None = None,
    progress: Progress | None = None,
) -> Perplexity:
    """Measure an exported folder by llama-perplexity's rule, see `lrqat.evaluation.perplexity`.

    Args:
        folder: from the ONNX exporter; its tokenizer.json cuts the text, and the session options of
            its genai_config.json say how to compute.
        text: the evaluation text.
        context: tokens a window.
        limit: windows at most; None: all.
        progress: wraps the iterable of windows.

    Raises:
        RuntimeUnavailableError: onnxruntime or tokenizers is not installed.
        UserError: the folder cannot be loaded.
        DataError: the text is shorter than two windows.
    """
    try:
        import onnxruntime
        import tokenizers
    except ImportError as error:
        raise RuntimeUnavailableError(
            f"{error.name} is not installed: pip install 'lrqat[onnx]'"
        ) from None
    path = Path(folder)
    options = onnxruntime.SessionOptions()
    for key, value in _session_options(path).items():
        if key.startswith("session."):
            options.add_session_config_entry(key, str(value))
    try:
        session = onnxruntime.InferenceSession(
            str(path / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # neither library's errors share a base class
        raise UserError(f"{path} is not an ONNX folder that can be run: {error}") from None
    tokens, bos = _encode(tokenizer, text)
    return perplexity(logits_of(session), Windows.cut(tokens, context, bos, limit), progress)


def _session_options(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / "genai_config.json").read_text(encoding="utf-8"))
        return dict(config["model"]["decoder"]["session_options"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path / 'genai_config.json'} cannot be read: {error}; a folder whose cache is "
            "integers has none, and `lrqat evaluate` measures it"
        ) from None


def _encode(tokenizer: Any, text: str) -> tuple[list[int], int | None]:
    """Ids of the text, without a closing token; and the id that the tokenizer puts first, if any.

    Names of special tokens that occur in the text are text, as in `lrqat.evaluation.text.encode`.
    """
    tokenizer.encode_special_tokens = True
    bare, whole = (tokenizer.encode("a", add_special_tokens=add).ids for add in (False, True))
    bos = whole[0] if whole[0] != bare[0] else None
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return (ids if bos is None else [bos, *ids]), bos


def logits_of(session: Any) -> LogitsFunction:
    """Tokens (n,) to logits (n, vocabulary), with an empty cache, of an onnxruntime session."""

    def logits(tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        try:
            found: NDArray[np.float32] = session.run(["logits"], feeds_of(session, tokens))[0][0]
        except Exception as error:  # onnxruntime's errors share no base class
            raise UserError(f"ONNX Runtime cannot run {len(tokens)} tokens: {error}") from None
        return found

    return logits


def feeds_of(session: Any, tokens: NDArray[np.int64], past: int = 0) -> dict[str, NDArray[Any]]:
    """Every input of an exported model for tokens (n,) after `past` others, of a cache of zeros."""
    total = past + len(tokens)
    feeds = {
        "input_ids": np.ascontiguousarray(tokens, np.int64)[None],
        "attention_mask": np.ones((1, total), np.int64),
        "position_ids": np.arange(past, total, dtype=np.int64)[None],
        **zero_cache(session, 1, past),
    }
    # The compact form (exporters.onnx_genai) counts positions itself.
    return {entry.name: feeds[entry.name] for entry in session.get_inputs()}


def zero_cache(session: Any, batch: int, length: int = 0) -> dict[str, NDArray[Any]]:
    """A cache of zeros, by input name: (batch, kv_heads, length, width) in the input's type."""
    return {
        entry.name: np.zeros((batch, entry.shape[1], length, entry.shape[3]), _NUMPY[entry.type])
        for entry in session.get_inputs()
        if entry.name.startswith("past_key_values.")
    }
