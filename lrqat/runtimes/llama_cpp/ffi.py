"""Declarations of the part of llama.cpp's C API that we call, for ctypes.

The library is the extension module of the `xllamacpp` wheel, which exports all of llama.cpp's
symbols. Its Python side only offers a server, so it is not imported; the file is found and opened.
Nothing promises that the interface stays as it is, so one version is pinned, and what the library
says of its own defaults is compared with what the structures below make of it before they are used.

Source: include/llama.h of llama.cpp b11548 (commit 781dbc5ac); ggml/src/ggml-quants.h.
"""

import ctypes
import importlib.metadata
import importlib.util
from collections import deque
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int8, c_int32, c_int64, c_size_t, c_uint32
from ctypes import c_void_p as pointer
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from lrqat.errors import RuntimeUnavailableError
from lrqat.optional_libraries import missing

PACKAGE = "xllamacpp"
VERSION = "2026.10.11549"
FLASH_ATTENTION_OFF = 0
TYPE_F32, TYPE_F16 = 0, 1
VOCAB_TYPE_SENTENCEPIECE = 1

LogCallback = ctypes.CFUNCTYPE(None, c_int32, c_char_p, pointer)
# (tensor, whether it is asked for before it is computed, user data): see ggml-backend.h
EvalCallback = ctypes.CFUNCTYPE(c_bool, pointer, c_bool, pointer)


class ModelParams(ctypes.Structure):
    """`struct llama_model_params`."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("devices", pointer),
        ("tensor_buft_overrides", pointer),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", pointer),
        ("progress_callback", pointer),
        ("progress_callback_user_data", pointer),
        ("kv_overrides", pointer),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    ]


class ContextParams(ctypes.Structure):
    """`struct llama_context_params`."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", pointer),
        ("cb_eval_user_data", pointer),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("moe_cache_size", c_size_t),
        ("abort_callback", pointer),
        ("abort_callback_data", pointer),
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", pointer),
        ("n_samplers", c_size_t),
        ("ctx_other", pointer),
    ]


class Batch(ctypes.Structure):
    """`struct llama_batch`."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    ]


class SamplerChainParams(ctypes.Structure):
    """`struct llama_sampler_chain_params`."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [("no_perf", c_bool)]


# name: (result, arguments)
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_log_set": (None, (LogCallback, pointer)),
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (ModelParams, ()),
    "llama_context_default_params": (ContextParams, ()),
    "llama_sampler_chain_default_params": (SamplerChainParams, ()),
    "llama_model_load_from_file": (pointer, (c_char_p, ModelParams)),
    "llama_model_free": (None, (pointer,)),
    "llama_model_get_vocab": (pointer, (pointer,)),
    "llama_model_n_ctx_train": (c_int32, (pointer,)),
    "llama_init_from_model": (pointer, (pointer, ContextParams)),
    "llama_free": (None, (pointer,)),
    "llama_n_ctx": (c_uint32, (pointer,)),
    "llama_get_memory": (pointer, (pointer,)),
    "llama_memory_clear": (None, (pointer, c_bool)),
    "llama_memory_seq_rm": (c_bool, (pointer, c_int32, c_int32, c_int32)),
    "llama_batch_init": (Batch, (c_int32, c_int32, c_int32)),
    "llama_batch_free": (None, (Batch,)),
    "llama_decode": (c_int32, (pointer, Batch)),
    "llama_get_logits": (POINTER(c_float), (pointer,)),
    "llama_vocab_type": (c_int32, (pointer,)),
    "llama_vocab_n_tokens": (c_int32, (pointer,)),
    "llama_vocab_bos": (c_int32, (pointer,)),
    "llama_vocab_eos": (c_int32, (pointer,)),
    "llama_vocab_is_eog": (c_bool, (pointer, c_int32)),
    "llama_vocab_get_add_bos": (c_bool, (pointer,)),
    "llama_vocab_get_add_eos": (c_bool, (pointer,)),
    "llama_tokenize": (
        c_int32,
        (pointer, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool),
    ),
    "llama_token_to_piece": (c_int32, (pointer, c_int32, c_char_p, c_int32, c_int32, c_bool)),
    "llama_detokenize": (
        c_int32,
        (pointer, POINTER(c_int32), c_int32, c_char_p, c_int32, c_bool, c_bool),
    ),
    "llama_sampler_chain_init": (pointer, (SamplerChainParams,)),
    "llama_sampler_chain_add": (None, (pointer, pointer)),
    "llama_sampler_init_greedy": (pointer, ()),
    "llama_sampler_sample": (c_int32, (pointer, pointer, c_int32)),
    "llama_sampler_free": (None, (pointer,)),
    "ggml_quantize_chunk": (
        c_size_t,
        (c_int32, POINTER(c_float), pointer, c_int64, c_int64, c_int64, POINTER(c_float)),
    ),
    "ggml_get_name": (c_char_p, (pointer,)),
    "ggml_nelements": (c_int64, (pointer,)),
    "ggml_nbytes": (c_size_t, (pointer,)),
    "ggml_backend_tensor_get": (None, (pointer, pointer, c_size_t, c_size_t)),
}

# What b11549 answers, at fields from both ends of the structures.
_CONTEXT_DEFAULTS = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "rope_scaling_type": -1,
    "flash_attn_type": -1,
    "type_k": TYPE_F16,
    "type_v": TYPE_F16,
    "cb_eval": None,
    "abort_callback": None,
    "embeddings": False,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "samplers": None,
    "n_samplers": 0,
    "ctx_other": None,
}
_MODEL_DEFAULTS = {
    "devices": None,
    "main_gpu": 0,
    "kv_overrides": None,
    "vocab_only": False,
    "check_tensors": False,
    "use_extra_bufts": True,
    "no_alloc": False,
}


# The last errors that llama.cpp logged: its functions only return null, and this says why.
_errors: deque[str] = deque(maxlen=8)
_LEVEL_ERROR = 4


def _keep_error(level: int, text: bytes, user_data: int) -> None:
    if level == _LEVEL_ERROR:
        _errors.append(text.decode("utf-8", "replace").strip())


_keep_errors = LogCallback(_keep_error)  # kept here, or ctypes would free what llama.cpp calls


def take_errors() -> str:
    """What llama.cpp logged as errors since the last call, on one line."""
    text = "; ".join(error for error in _errors if error)
    _errors.clear()
    return text


@cache
def load_library() -> ctypes.CDLL:
    """Open llama.cpp, declare its functions and initialise it; once for a process.

    Raises:
        RuntimeUnavailableError: the wheel is missing, of another version, or not what we expect.
    """
    library = _open(_library_path())
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name, None)
        if function is None:
            raise RuntimeUnavailableError(f"{PACKAGE} does not export {name}; {_remedy()}")
        function.restype, function.argtypes = result, list(arguments)
    _check_defaults(library.llama_context_default_params(), _CONTEXT_DEFAULTS)
    _check_defaults(library.llama_model_default_params(), _MODEL_DEFAULTS)
    library.llama_log_set(_keep_errors, None)
    library.llama_backend_init()
    return library


def declare_dequantizer(library: ctypes.CDLL, name: str) -> Any:
    """`dequantize_row_<name>`: (bytes, float32 out, number of weights). Raises AttributeError."""
    in_c = f"{name.removesuffix('_k')}_K" if name.endswith("_k") else name
    function = getattr(library, f"dequantize_row_{in_c}")
    function.restype, function.argtypes = None, [pointer, POINTER(c_float), c_int64]
    return function


def _library_path() -> Path:
    try:
        version = importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise RuntimeUnavailableError(missing(PACKAGE, f"{PACKAGE}=={VERSION}")) from None
    if version != VERSION:
        raise RuntimeUnavailableError(f"{PACKAGE} is {version}; {_remedy()}")
    spec = importlib.util.find_spec(PACKAGE)  # finds the package without importing it
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [path for folder in folders for path in sorted(Path(folder).glob(f"{PACKAGE}.*"))]
    libraries = [path for path in found if path.suffix in (".so", ".pyd", ".dylib")]
    if not libraries:
        raise RuntimeUnavailableError(f"{PACKAGE} has no library in {folders}; {_remedy()}")
    return libraries[0]


def _open(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeUnavailableError(f"{path} cannot be loaded ({error}); {_remedy()}") from None


def _check_defaults(params: ctypes.Structure, expected: dict[str, Any]) -> None:
    for field, value in expected.items():
        found = getattr(params, field)
        if found != value:
            raise RuntimeUnavailableError(
                f"{PACKAGE} has another {type(params).__name__}: {field} is {found!r} by default "
                f"where {value!r} was expected; {_remedy()}"
            )


def _remedy() -> str:
    return f"install the version that this was written for: pip install {PACKAGE}=={VERSION}"
