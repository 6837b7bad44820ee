"""Where a grid runs, and whether fast: the one table of back-ends.

GGUF rows were read from the sources of llama.cpp of October 2026 (ggml 0.25): `arch-fallback.h` for
processors, `ggml_backend_*_supports_op`, mmvq.cu and the tables of pipelines for the others. What
has no kernel of its own runs on the processor or in plain C. ONNX rows are the types that
`exporters.onnx.presets` writes for the runtime.
"""

from dataclasses import dataclass

from lrqat.grids.grid import GRIDS, Grid

# By llama.cpp's types: those that every back-end below has a kernel for.
_COMMON = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl")
_TWO_BITS = ("q2_k", "q2_k-sym")


@dataclass(frozen=True)
class Backend:
    """One row.

    Attributes:
        runtime: what it is.
        fast: grids that its kernels multiply with at speed.
        slow: grids that it runs, but slowly.
    """

    runtime: str
    fast: tuple[str, ...]
    slow: tuple[str, ...] = ()

    def grids(self) -> list[Grid]:
        """The fast ones."""
        return [GRIDS[name] for name in self.fast]


BACKENDS: dict[str, Backend] = {
    "cpu": Backend(
        "llama.cpp on x86 with AVX2",
        (*_COMMON, *_TWO_BITS, "iq4_xs", "mxfp4", "nvfp4", "q1_0", "tq1_0", "tq2_0"),
        slow=("q2_0",),
    ),
    "arm": Backend(
        "llama.cpp on ARM with NEON",
        (*_COMMON, *_TWO_BITS, "iq4_xs", "mxfp4", "nvfp4", "q1_0", "q2_0", "tq1_0", "tq2_0"),
    ),
    "cuda": Backend(
        "llama.cpp with CUDA",
        (*_COMMON, *_TWO_BITS, "iq4_xs", "mxfp4", "nvfp4", "q1_0", "q2_0"),
        slow=("tq1_0", "tq2_0"),
    ),
    "metal": Backend(
        "llama.cpp with Metal",
        (*_COMMON, *_TWO_BITS, "iq4_xs", "mxfp4", "q1_0", "q2_0", "tq2_0"),
        slow=("nvfp4", "tq1_0"),
    ),
    "vulkan": Backend(
        "llama.cpp with Vulkan",
        (*_COMMON, *_TWO_BITS, "iq4_xs", "mxfp4", "nvfp4", "q1_0", "q2_0", "tq1_0", "tq2_0"),
    ),
    "web": Backend(
        "ONNX Runtime with WebGPU",
        ("int4-g32", "int4-g64", "int4-g128", "int8-g32", "int8-g64", "int8-g128"),
        slow=("int2-g32", "int2-g64"),
    ),
    "npu": Backend("ONNX Runtime with QNN", ("int4-channel", "int8-channel")),
}
