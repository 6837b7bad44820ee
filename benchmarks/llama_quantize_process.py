"""The process in which `llama_model_quantize` is called: see `benchmarks.llama_quantize`.

Source: include/llama.h of llama.cpp v0.5.0.
"""

import ctypes
import json
import sys
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int32, c_size_t, c_uint32
from ctypes import c_void_p as pointer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lrqat.init.imatrix_format import read_entries


class ImatrixData(ctypes.Structure):
    """`struct llama_model_imatrix_data`."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("name", c_char_p),
        ("data", POINTER(c_float)),
        ("size", c_size_t),
    ]


class QuantizeParams(ctypes.Structure):
    """`struct llama_model_quantize_params`."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("nthread", c_int32),
        ("ftype", c_int32),
        ("output_tensor_type", c_int32),
        ("token_embedding_type", c_int32),
        ("allow_requantize", c_bool),
        ("quantize_output_tensor", c_bool),
        ("only_copy", c_bool),
        ("pure", c_bool),
        ("keep_split", c_bool),
        ("dry_run", c_bool),
        ("imatrix", POINTER(ImatrixData)),
        ("kv_overrides", pointer),
        ("tt_overrides", pointer),
        ("prune_layers", pointer),
        ("max_buf_size", c_size_t),
    ]


# What v0.5.0 answers, at fields from both ends of the structure.
_DEFAULTS = {
    "nthread": 0, "ftype": 7, "allow_requantize": False, "quantize_output_tensor": True,
    "pure": False, "dry_run": False, "prune_layers": None, "max_buf_size": 8 << 30,
}  # fmt: skip
END_OF_JOB = "-- end of job --"
_LogCallback = ctypes.CFUNCTYPE(None, c_int32, c_char_p, pointer)


def _print(level: int, text: bytes, user_data: int) -> None:
    sys.stdout.write(text.decode("utf-8", "replace"))


_printing = _LogCallback(_print)  # kept here, or ctypes would free what llama.cpp calls


def main(path: str, source: str, jobs: list[dict[str, Any]]) -> int:
    """Quantize, or say what would be; the first result of `llama_model_quantize` that is not 0."""
    library = ctypes.CDLL(path)
    library.llama_model_quantize_default_params.restype = QuantizeParams
    library.llama_model_quantize.restype = c_uint32
    library.llama_model_quantize.argtypes = [c_char_p, c_char_p, POINTER(QuantizeParams)]
    library.llama_log_set(_printing, None)
    library.llama_backend_init()
    for job in jobs:
        params = library.llama_model_quantize_default_params()
        answered = {name: getattr(params, name) for name in _DEFAULTS}
        if answered != _DEFAULTS:
            print(f"the library has another structure: {answered}")
            return 2
        params.nthread, params.ftype = 1, job["file_type"]
        params.dry_run = job.get("dry", False)
        if job.get("imatrix"):
            params.imatrix = _imatrix(job["imatrix"])
        target = job["target"].encode()
        failed = library.llama_model_quantize(source.encode(), target, ctypes.byref(params))
        if failed:
            return int(failed)
        print(END_OF_JOB)
    return 0


def _imatrix(source: str | bool) -> Any:
    """Means of a file, or, for True, of a tensor that no model has. A name of NULL ends them."""
    means = {"none": np.ones(1, np.float32)} if source is True else _means(Path(str(source)))
    entries = (ImatrixData * (len(means) + 1))()
    for entry, (name, values) in zip(entries, means.items(), strict=False):
        data = np.ascontiguousarray(values, np.float32)
        _kept.append(data)
        entry.name, entry.size = name.encode(), data.size
        entry.data = data.ctypes.data_as(POINTER(c_float))
    return entries


_kept: list[Any] = []  # arrays that C reads


def _means(path: Path) -> dict[str, Any]:
    """As load_imatrix of tools/quantize: an expert that no token reached has ones."""
    means = {}
    for name, (sums, counts) in read_entries(path).items():
        tokens = np.asarray(counts, np.float32)[:, None]
        rows = np.asarray(sums, np.float32).reshape(len(tokens), -1)
        means[name] = np.where(tokens > 0, rows / np.maximum(tokens, 1), 1).ravel()
    return means


if __name__ == "__main__":
    sys.exit(main(*json.loads(sys.argv[1])))
