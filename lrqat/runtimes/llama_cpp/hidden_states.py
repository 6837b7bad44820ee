"""Hidden states as llama.cpp computes them, by its evaluation callback.

llama.cpp names what a graph computes: `l_out-N` leaves layer N, `result_norm` enters the output
head, and what enters the first layer is `embd`, `inpL` (position embeddings added) or `inp_scaled`
(Gemma's factor applied). Before it computes a tensor it asks the callback whether somebody wants to
see it, and afterwards it shows it.

Source: src/models/*.cpp; ggml/include/ggml-backend.h, `ggml_backend_sched_eval_callback`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrqat.models.hidden_states import EMBEDDING, FINAL_NORM, HiddenStates, layer_name
from lrqat.runtimes.llama_cpp import ffi
from lrqat.runtimes.llama_cpp.runtime import LlamaCpp

_LAYER = "l_out-"
_PLACES = {"embd": EMBEDDING, "inpL": EMBEDDING, "inp_scaled": EMBEDDING, "result_norm": FINAL_NORM}


def hidden_states(path: str | Path, tokens: Sequence[int] | NDArray[np.int64]) -> HiddenStates:
    """The hidden states of a GGUF file after each of `tokens` (n,).

    Returns:
        Those that llama.cpp's graph of this architecture names; none if it names none.

    Raises:
        UserError: as `LlamaCpp.open` and `LlamaCpp.logits` do.
    """
    watch = _Watch(ffi.load_library())
    with LlamaCpp.open(path, n_ctx=max(len(tokens), 1), evaluated=watch.callback) as llama:
        llama.logits(tokens)
    names = [EMBEDDING, *map(layer_name, range(len(watch.seen))), FINAL_NORM]
    return {
        name: np.concatenate(watch.seen[name]).reshape(len(tokens), -1)
        for name in names
        if name in watch.seen
    }


class _Watch:
    """Copies the tensors of `_PLACES` when they are shown.

    Attributes:
        callback: for llama.cpp; it must live as long as the context.
        seen: their numbers by our names, a piece for every part of the batch.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._last: dict[str, str] = {}  # by our name, llama.cpp's of what was copied last
        self.seen: dict[str, list[NDArray[np.float32]]] = {}
        self.callback = ffi.EvalCallback(self._evaluated)

    def _evaluated(self, tensor: int, ask: bool, user_data: int) -> bool:
        name = self._library.ggml_get_name(tensor).decode("utf-8", "replace")
        place = _place(name)
        if ask or place is None:
            return place is not None
        if self._last.setdefault(place, name) != name:
            self.seen[place] = []  # a step further than what was taken for it: inpL after embd
        self._last[place] = name
        self.seen.setdefault(place, []).append(self._numbers(tensor))
        return True  # go on

    def _numbers(self, tensor: int) -> NDArray[np.float32]:
        """All of a contiguous float32 tensor, as hidden states are."""
        count = self._library.ggml_nelements(tensor)
        found = np.full(count, np.nan, np.float32)
        if self._library.ggml_nbytes(tensor) == found.nbytes:
            self._library.ggml_backend_tensor_get(tensor, found.ctypes.data, 0, found.nbytes)
        return found


def _place(name: str) -> str | None:
    number = name.removeprefix(_LAYER)
    if number != name and number.isdigit():
        return layer_name(int(number))
    return _PLACES.get(name)
