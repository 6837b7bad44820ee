"""How fast llama.cpp multiplies with a type on this processor, without a model.

The product of a row with activations, `vec_dot` of ggml-cpu.h `ggml_type_traits_cpu`, of which each
type has one for each processor, or one in plain C. Some types are laid out anew where a file is
loaded (repack.cpp) and are faster in a model than here; none is slower.
"""

import ctypes
import time
from typing import Any, ClassVar

import numpy as np

from exporters.gguf.layout.ggml_types import TYPES, GgmlType, ggml_type
from lrqat.errors import RuntimeUnavailableError
from lrqat.runtimes.llama_cpp import ffi

_WEIGHTS = 1 << 16
_ROUNDS = 15
_SPARE_BYTES = 64  # a kernel may load a whole vector at the end
_VecDot = ctypes.CFUNCTYPE(
    None, ctypes.c_int, ctypes.POINTER(ctypes.c_float), ctypes.c_size_t, ctypes.c_void_p,
    ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int,
)  # fmt: skip


class _Traits(ctypes.Structure):
    """`struct ggml_type_traits_cpu`."""

    _fields_: ClassVar[list[tuple[str, Any]]] = [
        ("from_float", ctypes.c_void_p),
        ("vec_dot", ctypes.c_void_p),
        ("vec_dot_type", ctypes.c_int),
        ("nrows", ctypes.c_int64),
    ]


def weights_per_second(type_name: str) -> float:
    """Weights of a type that one thread of this processor multiplies with in a second.

    Raises:
        RuntimeUnavailableError: the library is missing, or has no product of this type.
    """
    library = ffi.load_library()
    library.ggml_cpu_init()
    ask = library.ggml_get_type_traits_cpu
    ask.restype, ask.argtypes = ctypes.POINTER(_Traits), [ctypes.c_int]
    try:
        kind = ggml_type(type_name)
    except KeyError:
        raise RuntimeUnavailableError(f"llama.cpp has no type {type_name!r}") from None
    traits = ask(kind.number).contents
    if not traits.vec_dot or traits.vec_dot_type not in TYPES:
        raise RuntimeUnavailableError(f"llama.cpp has no product with {type_name!r}")
    return _WEIGHTS / _shortest(_VecDot(traits.vec_dot), kind, TYPES[traits.vec_dot_type])


def _shortest(product: Any, weights: GgmlType, activations: GgmlType) -> float:
    """Seconds of the fastest of some rounds, of zeros: no kernel asks what the numbers are."""
    rows = [
        np.zeros(kind.blocks(_WEIGHTS) * kind.nbytes + _SPARE_BYTES, np.uint8)
        for kind in (weights, activations)
    ]
    result, taken = ctypes.c_float(), []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        product(
            _WEIGHTS, ctypes.byref(result), 0, rows[0].ctypes.data, 0, rows[1].ctypes.data, 0, 1
        )
        taken.append(time.perf_counter() - begin)
    return min(taken)
