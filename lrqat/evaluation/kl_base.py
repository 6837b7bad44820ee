"""A model's predictions as the file that stock `llama-perplexity --kl-divergence` reads.

    llama-perplexity -m model.gguf --kl-divergence --kl-divergence-base FILE

then reports perplexity, KL and same-top of the GGUF file against the model that wrote FILE, here
the fake-quant reference. Little endian:

    "_logits_"   i32 context   i32 vocabulary   i32 windows   i32 tokens[windows * context]
    for every scored position:
        f32 scale   f32 least   u16 codes[vocabulary]   u16 0 if the vocabulary is odd

    log-probability = least + scale * code

Codes are 16 bits over the logits' range, of which all but the upper 16 nats is cut off: an error of
at most 1.3e-4 where the probability is above e^-16 of the largest. Source: llama.cpp,
tools/perplexity/perplexity.cpp, `log_softmax` (the one with `uint16_t`), `process_logits` and
`kl_divergence`. Windows and scored positions are those of `lrqat.evaluation.perplexity`.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lrqat.atomic_files import replaced_file
from lrqat.evaluation.perplexity import LogitsFunction, Progress, Windows

_MAGIC = b"_logits_"
_RANGE = np.float32(16)
_STEPS = np.float32(65535)


def write_kl_base(
    path: Path,
    logits_of: LogitsFunction,
    windows: Windows,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write the predictions of a model on `windows`; one window is in memory at a time.

    Args:
        path: the file; it appears when it is complete.
        logits_of: the model.
        windows: what it is run on.
        overwrite: replace `path` if it exists.
        progress: wraps the iterable of windows.

    Returns:
        Bytes written.

    Raises:
        OutputError: `path` exists or cannot be written.
    """
    with replaced_file(path, overwrite) as staged, staged.open("wb") as stream:
        for i, window in enumerate(progress(windows.tokens) if progress else windows.tokens):
            logits = logits_of(window)[windows.scored]
            if i == 0:
                numbers = (windows.context, logits.shape[1], len(windows.tokens))
                stream.write(_MAGIC + np.array(numbers, "<i4").tobytes())
                stream.write(windows.tokens.astype("<i4").tobytes())
            stream.write(encode_rows(logits).tobytes())
        return stream.tell()


def encode_rows(logits: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Records of the file for logits float32 (n, vocabulary): uint16 (n, 4 + vocabulary [+ 1]).

    In float32, in the order of operations of llama.cpp, so that codes agree with its own.
    """
    rows, vocabulary = logits.shape
    most = logits.max(1, keepdims=True)
    least = np.maximum(logits.min(1, keepdims=True), most - _RANGE)
    total = np.exp(logits - most).sum(1, keepdims=True, dtype=np.float64)
    scale = (most - least) / _STEPS
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.rint((1 / scale) * (logits - least))
    records = np.zeros((rows, 4 + vocabulary + vocabulary % 2), "<u2")
    # All logits equal: the scale is zero, and so are the codes.
    records[:, 4 : 4 + vocabulary] = np.where((logits > least) & (scale > 0), codes, 0)
    records[:, 0:2] = scale.astype("<f4").view("<u2")
    records[:, 2:4] = (least - most - np.log(total).astype(np.float32)).astype("<f4").view("<u2")
    return records
