"""llama.cpp itself, in this process: the tokens it makes of a text, and the logits of a GGUF file.

Flash attention is off and the key-value cache is float32, so that what is measured is the file and
not the cache: either of the defaults rounds keys and values to half precision.

What remains between an F32 file and PyTorch in float32 grows with the position: llama.cpp gets
rotary angles by multiplying float32 powers up (ggml-cpu/ops.cpp `ggml_rope_cache_init`), PyTorch
computes each by itself. Measured on an 8-layer model, the largest |d logit| is 3e-5 before position
256 and 1.4e-4 before 512; with llama.cpp's angles put into PyTorch it is 3e-5 throughout. So graphs
are compared on the first `lrqat.runtimes.parity.L1_POSITIONS` positions, where 1e-4 separates a
wrong graph, which differs by more than 1, from rounding.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporters.gguf.file.shards import read_model
from exporters.gguf.layout.ggml_types import ggml_type
from lrqat.atomic_files import is_present
from lrqat.errors import DataError, ModelError, RuntimeUnavailableError
from lrqat.runtimes.llama_cpp import ffi

_UBATCH = 512
_LEARNED_POSITIONS = "position_embd.weight"


class LlamaCpp:
    """A loaded GGUF model. Use `LlamaCpp.open`, and `close` or a `with` block."""

    def __init__(self, library: Any, model: int, context: int | None, n_ctx: int) -> None:
        self._library, self._model, self._context = library, model, context
        self._vocab: int = library.llama_model_get_vocab(model)
        self._batch: Any = library.llama_batch_init(n_ctx, 0, 1)
        self.n_ctx = n_ctx
        self.n_ctx_train: int = library.llama_model_n_ctx_train(model)
        self.n_vocab: int = library.llama_vocab_n_tokens(self._vocab)
        self.bos: int = library.llama_vocab_bos(self._vocab)
        self.eos: int = library.llama_vocab_eos(self._vocab)
        self.add_bos: bool = library.llama_vocab_get_add_bos(self._vocab)
        self.add_eos: bool = library.llama_vocab_get_add_eos(self._vocab)

    @classmethod
    def open(
        cls, path: str | Path, n_ctx: int = 512, n_threads: int = 1, evaluated: Any = None
    ) -> "LlamaCpp":
        """Load the GGUF file `path` on the CPU.

        Args:
            path: the file.
            n_ctx: positions of the context; a text may have as many tokens. A model of learned
                positions gets no more than it has: llama.cpp aborts the process past them.
            n_threads: threads of a matmul.
            evaluated: an `ffi.EvalCallback`, which sees every tensor of the graph; the caller keeps
                it as long as the model is open.

        Raises:
            RuntimeUnavailableError: the pinned llama.cpp is not installed.
            ModelError: the file is missing, or llama.cpp refuses it.
        """
        library = ffi.load_library()
        model = _load_model(library, path)
        trained = library.llama_model_n_ctx_train(model)
        if n_ctx > trained and _LEARNED_POSITIONS in read_model(Path(path), True).tensors:
            n_ctx = trained
        params = _context_params(library, n_ctx, n_threads)
        params.cb_eval = ctypes.cast(evaluated, ctypes.c_void_p) if evaluated else None
        context = library.llama_init_from_model(model, params)
        if not context:
            library.llama_model_free(model)
            raise ModelError(
                f"llama.cpp cannot make a context of {n_ctx} positions for {path}: "
                f"{ffi.take_errors() or 'no reason'}; try a smaller one"
            )
        return cls(library, model, context, n_ctx)

    @classmethod
    def open_vocabulary(cls, path: str | Path) -> "LlamaCpp":
        """Load no more than the vocabulary of `path`, which then need not hold any tensors.

        There are tokens and text, and no logits. Raises as `open` does.
        """
        library = ffi.load_library()
        return cls(library, _load_model(library, path, vocab_only=True), None, 1)

    def tokenize(self, text: str, add_special: bool, parse_special: bool = False) -> list[int]:
        """Ids of `text`.

        Args:
            text: any Unicode.
            add_special: put bos and eos where the model wants them.
            parse_special: read control tokens that are spelt out in the text as such.
        """
        data = text.encode("utf-8")
        capacity = len(data) + 8
        while True:
            tokens = (ctypes.c_int32 * capacity)()
            count = self._library.llama_tokenize(
                self._vocab, data, len(data), tokens, capacity, add_special, parse_special
            )
            if count >= 0:
                return list(tokens[:count])
            capacity = -count

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Text of `tokens`, control tokens left out; bytes that are not UTF-8 become U+FFFD."""
        is_sentencepiece = (
            self._library.llama_vocab_type(self._vocab) == ffi.VOCAB_TYPE_SENTENCEPIECE
        )
        if self.add_bos and len(tokens) and tokens[0] == self.bos:
            tokens = tokens[1:]  # else llama_detokenize takes bos, not the space, for the start
        # For byte-level BPE llama_detokenize "cleans" spaces before punctuation; pieces are exact.
        data = self._detokenize_all(tokens) if is_sentencepiece else self._pieces(tokens)
        return data.decode("utf-8", "replace")

    def logits(self, tokens: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """Logits float32 (n, vocabulary) after each of `tokens` (n,), from an empty cache.

        Raises:
            DataError: no tokens, more than `n_ctx`, or an id outside the vocabulary.
        """
        count = self._decode_afresh(tokens, every_output=True)
        found = self._library.llama_get_logits(self._context)
        return np.ctypeslib.as_array(found, (count, self.n_vocab)).copy()

    def generate(self, prompt: str, n: int) -> str:
        """The continuation of `prompt` by at most `n` tokens, always the most probable one.

        Raises:
            DataError: the prompt is empty or does not fit the context.
        """
        return self.generate_after(self.tokenize(prompt, add_special=True), n)

    def generate_after(self, tokens: Sequence[int], n: int) -> str:
        """The same after tokens, such as those of a chat template."""
        self._decode_afresh(tokens, every_output=False)
        sampler = self._greedy_sampler()
        position = int(self._batch.n_tokens)
        made: list[int] = []
        try:
            while len(made) < n:
                token = self._library.llama_sampler_sample(sampler, self._context, -1)
                if self._library.llama_vocab_is_eog(self._vocab, token):
                    break
                made.append(token)
                if position == self.n_ctx:
                    break
                self._decode([token], position, every_output=True)
                position += 1
        finally:
            self._library.llama_sampler_free(sampler)
        return self._pieces(made).decode("utf-8", "replace")

    def feed(self, tokens: Sequence[int], position: int) -> None:
        """Run the model on `tokens` from `position` on, for the logits of the last one.

        What the cache holds from there on is forgotten. Raises as `logits` does.
        """
        self._check(tokens, position)
        memory = self._library.llama_get_memory(self._context)
        self._library.llama_memory_seq_rm(memory, -1, position, -1)
        self._decode(list(tokens), position, every_output=False)

    def close(self) -> None:
        """Free the model; calling it again does nothing."""
        if self._model:
            self._library.llama_batch_free(self._batch)
            if self._context is not None:
                self._library.llama_free(self._context)
            self._library.llama_model_free(self._model)
            self._model = 0

    def __enter__(self) -> "LlamaCpp":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _decode_afresh(
        self, tokens: Sequence[int] | NDArray[np.integer[Any]], every_output: bool
    ) -> int:
        ids = [int(token) for token in tokens]
        self._check(ids, 0)
        memory = self._library.llama_get_memory(self._context)
        self._library.llama_memory_clear(memory, True)
        self._decode(ids, 0, every_output)
        return len(ids)

    def _check(self, ids: Sequence[int], position: int) -> None:
        if self._context is None:
            raise ModelError("only the vocabulary was opened; use LlamaCpp.open for logits")
        if not 0 < len(ids) <= self.n_ctx - position:
            raise DataError(f"{len(ids)} tokens do not fit a context of {self.n_ctx}")
        if not all(0 <= token < self.n_vocab for token in ids):
            raise DataError(f"token ids must be in 0..{self.n_vocab - 1}")

    def _decode(self, tokens: list[int], start: int, every_output: bool) -> None:
        """Run the model on `tokens` at positions from `start`."""
        batch = self._batch
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, start + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = every_output or i == len(tokens) - 1
        status = self._library.llama_decode(self._context, batch)
        if status:
            raise ModelError(f"llama_decode failed with {status}: {ffi.take_errors()}")

    def _greedy_sampler(self) -> int:
        library = self._library
        sampler: int = library.llama_sampler_chain_init(
            library.llama_sampler_chain_default_params()
        )
        library.llama_sampler_chain_add(sampler, library.llama_sampler_init_greedy())
        return sampler

    def _pieces(self, tokens: Sequence[int]) -> bytes:
        return b"".join(self._piece(token) for token in tokens)

    def _piece(self, token: int) -> bytes:
        capacity = 64
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            size = self._library.llama_token_to_piece(
                self._vocab, token, buffer, capacity, 0, False
            )
            if size >= 0:
                return buffer.raw[:size]
            capacity = -size

    def _detokenize_all(self, tokens: Sequence[int]) -> bytes:
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        capacity = 8 * len(tokens) + 16
        while True:
            buffer = ctypes.create_string_buffer(capacity)
            size = self._library.llama_detokenize(
                self._vocab, ids, len(tokens), buffer, capacity, False, False
            )
            if size >= 0:
                return buffer.raw[:size]
            capacity = -size


def dequantize_row(type_name: str, data: bytes, n: int) -> NDArray[np.float32]:
    """What llama.cpp's own C code makes of `n` weights of the type `type_name` ("q4_0" ...).

    Raises:
        RuntimeUnavailableError: the library is missing, or has no such type.
        DataError: `data` is not the bytes of `n` weights.
    """
    library = ffi.load_library()
    try:
        function = ffi.declare_dequantizer(library, type_name)
        kind = ggml_type(type_name)
    except (AttributeError, KeyError):
        raise RuntimeUnavailableError(f"llama.cpp has no dequantiser for {type_name!r}") from None
    if n % kind.weights or len(data) != kind.blocks(n) * kind.nbytes:
        raise DataError(f"{len(data)} bytes are not {n} weights of {type_name}")
    out = np.empty(n, np.float32)
    function(data, out.ctypes.data_as(ctypes.POINTER(ctypes.c_float)), n)
    return out


def _load_model(library: Any, path: str | Path, vocab_only: bool = False) -> int:
    if not is_present(Path(path)):
        raise ModelError(f"no GGUF file at {path}; write one with `lrqat export`")
    ffi.take_errors()
    params = library.llama_model_default_params()
    params.n_gpu_layers, params.vocab_only = 0, vocab_only
    model: int | None = library.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise ModelError(f"llama.cpp cannot load {path}: {ffi.take_errors() or 'no reason'}")
    return model


def _context_params(library: Any, n_ctx: int, n_threads: int) -> Any:
    params = library.llama_context_default_params()
    params.n_ctx = params.n_batch = n_ctx
    params.n_ubatch = min(n_ctx, _UBATCH)
    params.n_threads = params.n_threads_batch = n_threads
    params.flash_attn_type = ffi.FLASH_ATTENTION_OFF
    params.type_k = params.type_v = ffi.TYPE_F32
    return params
