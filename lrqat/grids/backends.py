"""Where a grid runs, and whether fast: the one table of back-ends.

A row names what a runtime reads, and its types: of GGUF files by llama.cpp's names, which are those
of the grids; of ONNX folders and fused checkpoints by bits and groups, as the grids `int4-g32`.
What is in none of its lists is unknown. The row of llama.cpp on x86 was also timed
(`lrqat.runtimes.llama_cpp.kernels`), and a test does so again.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from lrqat.grids.grid import GRIDS, Grid

GGUF, ONNX, FUSED = "GGUF", "ONNX", "fused checkpoint"


class Speed(StrEnum):
    """How a runtime does a type."""

    FAST = "fast"  # with a kernel made for it
    RUNS = "runs"  # correctly, and nobody here knows how fast
    SLOW = "slow"  # in plain C, on the processor beside a GPU, or unpacked first
    REFUSED = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Backend:
    """One row.

    Attributes:
        runtime: what it is.
        reads: the format of what it runs.
        source: where that is said, and as of when.
        fast: types that it has kernels for.
        runs: types that it runs, at a speed that is not known here.
        slow: types that it runs, but slowly.
        refused: types that it does not run.
        widens: whether an export for it stores 2-bit integers in INT4 (its preset says so).
        reasons: by type, what there is to say of it.
    """

    runtime: str
    reads: str
    source: str
    fast: tuple[str, ...]
    runs: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    widens: bool = False
    reasons: dict[str, str] = field(default_factory=dict)

    def grids(self) -> list[Grid]:
        """The fast ones."""
        return [GRIDS[name] for name in self.fast]

    def speed_of(self, name: str) -> Speed:
        """How it does a type: "q4_0", "int4-g32", or "int4" where the groups are not known."""
        lists = {
            Speed.FAST: self.fast,
            Speed.RUNS: self.runs,
            Speed.SLOW: self.slow,
            Speed.REFUSED: self.refused,
        }
        for speed, names in lists.items():
            if name in names or any(each.startswith(f"{name}-g") for each in names):
                return speed
        return Speed.UNKNOWN

    def exported(self, name: str) -> str:
        """The type that a planned export has for it where the grids ask for `name`."""
        return name.replace("int2-", "int4-") if self.widens else name

    def reason_for(self, name: str) -> str | None:
        """What there is to say of a type, or of all with its bits."""
        return self.reasons.get(name) or self.reasons.get(name.partition("-")[0])


# By llama.cpp's types: those that every GPU below and every processor has a kernel for.
_COMMON = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl")
_TWO_BITS = ("q2_k", "q2_k-sym")
_K_QUANTS = ("q2_k", "q2_k-sym", "q3_k", "q4_k", "q5_k", "q6_k")
_GGML = "llama.cpp of October 2026 (ggml 0.25)"
_PLAIN_C = "no kernel of its own there: plain C"
_ON_PROCESSOR = "no kernel there: the processor computes it"


def _groups(bits: int, *sizes: int | str) -> tuple[str, ...]:
    return tuple(f"int{bits}-{size if isinstance(size, str) else f'g{size}'}" for size in sizes)


def _processor(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, _ON_PROCESSOR)


_LLAMA_CPP = {
    "cpu": Backend(
        "llama.cpp on x86 with AVX2", GGUF, f"ggml-cpu/arch-fallback.h, {_GGML}; timed",
        (*_COMMON, *_TWO_BITS, "iq4_xs", "mxfp4", "nvfp4", "q1_0", "tq1_0", "tq2_0"),
        slow=("q2_0",), reasons={"q2_0": _PLAIN_C},
    ),
    "arm": Backend(
        "llama.cpp on ARM with NEON", GGUF, f"ggml-cpu/arch-fallback.h, {_GGML}",
        (*_COMMON, *_TWO_BITS, "iq4_xs", "mxfp4", "nvfp4", "q1_0", "q2_0", "tq1_0", "tq2_0"),
    ),
    "cuda": Backend(
        "llama.cpp with CUDA", GGUF, f"ggml-cuda/mmvq.cu, mmq.cu, {_GGML}",
        (*_COMMON, *_TWO_BITS, "iq4_xs", "mxfp4", "nvfp4", "q1_0", "q2_0"),
        slow=("tq1_0", "tq2_0"), reasons=_processor("tq1_0", "tq2_0"),
    ),
    "metal": Backend(
        "llama.cpp with Metal", GGUF, f"ggml-metal `supports_op`, {_GGML}",
        (*_COMMON, *_TWO_BITS, "iq4_xs", "mxfp4", "q1_0", "q2_0", "tq2_0"),
        slow=("nvfp4", "tq1_0"), reasons=_processor("nvfp4", "tq1_0"),
    ),
    "vulkan": Backend(
        "llama.cpp with Vulkan", GGUF, f"ggml-vulkan's table of pipelines, {_GGML}",
        (*_COMMON, *_TWO_BITS, "iq4_xs", "mxfp4", "nvfp4", "q1_0", "q2_0", "tq1_0", "tq2_0"),
    ),
    "opencl": Backend(
        "llama.cpp with OpenCL (Adreno)", GGUF, "ggml-opencl/kernels and OPENCL.md of 2026",
        ("q4_0", "q4_1", "q8_0", "q4_k", "q6_k", "iq4_nl", "mxfp4"),
        runs=("q5_0", "q5_1", "q5_k", "q1_0"),
        slow=("q2_0", "tq1_0", "tq2_0"), reasons=_processor("q2_0", "tq1_0", "tq2_0"),
    ),
    "llama-webgpu": Backend(
        "llama.cpp with WebGPU", GGUF, "ggml-webgpu.cpp `supports_op` of 2026 (00bbfce1)",
        (*_COMMON, *_TWO_BITS, "iq4_xs"),
        slow=("mxfp4", "nvfp4", "q1_0", "q2_0", "tq1_0", "tq2_0"),
        reasons=_processor("mxfp4", "nvfp4", "q1_0", "q2_0", "tq1_0", "tq2_0"),
    ),
}  # fmt: skip

_EVERY_SIZE = (16, 32, 64, 128, 256, "channel")
_ON_ONNX_RUNTIME = {
    "ort-cpu": Backend(
        "ONNX Runtime on a CPU", ONNX, "docs/onnx-grids.md, timed with 1.26 and 1.32",
        _groups(4, *_EVERY_SIZE), runs=_groups(2, *_EVERY_SIZE), slow=_groups(8, *_EVERY_SIZE),
        reasons={"int8": "its kernels in float32 are for 4 bits; --accuracy-level 4 is fast"},
    ),
    "ort-cuda": Backend(
        "ONNX Runtime with CUDA", ONNX, "contrib_ops/cuda/quantization/matmul_nbits.cc (01b814bd)",
        (*_groups(4, 32, 64, 128), *_groups(8, 32, 64, 128)),
        reasons={"int2": "2 bits came in September 2026; how fast is not known"}, widens=True,
    ),
    "directml": Backend(
        "ONNX Runtime with DirectML", ONNX, "DmlOperatorMatMulNBits.cpp (171d6160)", (),
        runs=(*_groups(4, *_EVERY_SIZE), *_groups(8, *_EVERY_SIZE)),
        refused=_groups(2, *_EVERY_SIZE), widens=True,
    ),
    "web": Backend(
        "ONNX Runtime with WebGPU", ONNX, "the preset webgpu, docs/onnx-grids.md",
        (*_groups(4, 32, 64, 128), *_groups(8, 32, 64, 128)), slow=_groups(2, 32, 64), widens=True,
    ),
    "npu": Backend(
        "ONNX Runtime with QNN", ONNX, "the preset qnn, docs/onnx-grids.md; run in an emulator",
        _groups(4, "channel") + _groups(8, "channel"), widens=True,
    ),
    "openvino": Backend(
        "OpenVINO", ONNX, "the preset openvino, docs/onnx-grids.md; run with 2026.4", (),
        runs=(*_groups(4, *_EVERY_SIZE), *_groups(8, *_EVERY_SIZE)),
        refused=_groups(2, *_EVERY_SIZE), widens=True,
        reasons={"int2": "--two-bit-type int4 stores it in INT4"},
    ),
}  # fmt: skip

_PROGRAMS = {
    "ollama": Backend(
        "Ollama", GGUF, "ollama/fs/ggml/type.go of 2026 (1f9b1deb)", (),
        runs=("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", *_K_QUANTS, "mxfp4"),
        refused=("iq4_nl", "iq4_xs", "tq1_0", "tq2_0"),
        reasons=dict.fromkeys(("iq4_nl", "iq4_xs", "tq1_0", "tq2_0"), "its list says so"),
    ),
    "lm-studio": Backend(
        "LM Studio", GGUF, "it runs llama.cpp, some weeks old; its list of bugs, August 2026", (),
        runs=(*_COMMON, *_TWO_BITS, "iq4_xs", "mxfp4", "tq1_0", "tq2_0"),
        reasons=dict.fromkeys(("q1_0", "q2_0", "nvfp4"), "depends on its llama.cpp"),
    ),
    "vllm": Backend(
        "vLLM", FUSED, "compressed-tensors' pack-quantized by Marlin; vLLM's documentation of 2026",
        (*_groups(4, 32, 64, 128, "channel"), *_groups(8, 32, 64, 128, "channel")),
    ),
    "vllm-gguf": Backend(
        "vLLM with vllm-gguf-plugin, on a GPU", GGUF,
        "its sets of types (MMVQ, MMQ), September 2026; experimental, it says",
        ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", *_K_QUANTS), slow=("iq4_nl", "iq4_xs"),
        reasons=dict.fromkeys(("iq4_nl", "iq4_xs"), "a prompt is multiplied with unpacked weights"),
    ),
    "mlx": Backend(
        "MLX", GGUF, "mlx-examples/llms/gguf_llm, read in November 2026", ("q4_0", "q4_1", "q8_0"),
        slow=("q5_0", "q5_1", *_K_QUANTS),
        reasons=dict.fromkeys(("q5_0", "q5_1", *_K_QUANTS), "read as float16"),
    ),
}  # fmt: skip

_TERNARY = "ternary types have fast kernels hardly anywhere but on CPUs"
# What to know of a type before one trains on it.
REMARKS = {
    "q2_0": "on x86 q2_0 has no fast kernel in llama.cpp (64 tokens of SmolLM2-135M on one thread: "
    "17 tokens a second where q4_0 and iq4_nl have 220)",
    "tq1_0": _TERNARY,
    "tq2_0": _TERNARY,
}

# By the name that `--for` takes, which wants a row with fast types.
BACKENDS: dict[str, Backend] = _LLAMA_CPP | _ON_ONNX_RUNTIME | _PROGRAMS
CHOICES = tuple(name for name, backend in BACKENDS.items() if backend.fast)
