"""Perplexity of an ONNX folder, with nothing but ONNX Runtime: neither torch nor transformers.

lrqat.onnx_perplexity("runs/a/onnx", Path("text.txt").read_text()).perplexity
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrqat import optional_libraries
from lrqat.errors import UserError, refusing
from lrqat.evaluation.perplexity import LogitsFunction, Perplexity, Progress, Windows, perplexity
from lrqat.foreign_files import refuse_irregular
from lrqat.runtimes.genai_config import FILE_NAME, read_genai_config

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
    onnxruntime = optional_libraries.load("onnxruntime", "lrqat[onnx]")
    tokenizers = optional_libraries.load("tokenizers", "tokenizers")
    path = Path(folder)
    options = onnxruntime.SessionOptions()
    for key, value in _session_entries(path).items():
        options.add_session_config_entry(key, value)
    refuse_irregular(path)
    with refusing(UserError, f"{path} is not an ONNX folder that can be run", "export it again"):
        session = onnxruntime.InferenceSession(
            str(path / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        tokenizer = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    tokens, bos = _encode(tokenizer, text)
    return perplexity(logits_of(session), Windows.cut(tokens, context, bos, limit), progress)


def _session_entries(path: Path) -> dict[str, str]:
    """The entries of genai_config.json that say how quantised products are computed."""
    if not (path / FILE_NAME).is_file():
        raise UserError(
            f"{path / FILE_NAME} cannot be read; a folder whose cache is integers has none, and "
            "`lrqat evaluate` measures it"
        )
    options = read_genai_config(path)[0]["model"]["decoder"]["session_options"]
    return {key: value for key, value in options.items() if key.startswith("session.")}


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
