"""Presets: what an ONNX file should be for the runtime that is going to run it.

A row lists, for every option, the values that go with the runtime; the first is taken where the
user says nothing, and any other value is refused, with the reason. Options are those of
`exporters.onnx.options.Options`. What was run and what was not is in docs/onnx-grids.md.
"""

from dataclasses import dataclass, field

ALL_OPSETS = (21, 22, 23, 25)
_TYPES = ("auto", "float32", "float16", "int8")


@dataclass(frozen=True)
class Preset:
    """One row.

    Attributes:
        runtime: what it is for, and the least version.
        opset: ONNX operator sets.
        float_type: of everything that is not an integer.
        accuracy_level: ONNX Runtime's, see `Options`.
        two_bit_type: type of 2-bit integers.
        integer_type: of weights that are multiplied with, see `exporters.onnx.weights.storage`.
        attention: one node per layer, or products and a softmax.
        activation_form: how static ranges are written.
        embedding_type: of an embedding that was not trained on a grid, see
            `exporters.onnx.weights.embedding_and_head`.
        head_type: the same of an output head.
        keeps_half_steps: whether the runtime rounds to half precision where the graph does and goes
            on in float32, which is how `q8_0` rounds the steps of activations.
        computes_ranges: whether the runtime takes roundings whose range the graph computes.
        reasons: why an option has not all values, by its name.
    """

    runtime: str
    opset: tuple[int, ...] = (23, 21, 22, 25)
    float_type: tuple[str, ...] = ("float32",)
    accuracy_level: tuple[int, ...] = (1, 0, 4)
    two_bit_type: tuple[str, ...] = ("int4", "int2")
    integer_type: tuple[str, ...] = ("signed",)
    attention: tuple[str, ...] = ("node", "products")
    activation_form: tuple[str, ...] = ("qdq", "arithmetic", "fast")
    embedding_type: tuple[str, ...] = _TYPES
    head_type: tuple[str, ...] = _TYPES
    keeps_half_steps: bool = True
    computes_ranges: bool = True
    reasons: dict[str, str] = field(default_factory=dict)


_NO_FAST = "there is no CPU kernel of ONNX Runtime's to be fast in"
_NO_LEVEL = "only ONNX Runtime's own kernels have an accuracy level"
_SIGNED = "its quantised kernels are found for signed types, which need no zero-points"
_NO_BFLOAT16 = "an embedding or head in bfloat16 was not tried there"
_NO_BFLOAT16_TYPES = {"embedding_type": _NO_BFLOAT16, "head_type": _NO_BFLOAT16}
_WITH_BFLOAT16 = (*_TYPES, "bfloat16")

PRESETS: dict[str, Preset] = {
    "cpu": Preset(
        runtime="ONNX Runtime 1.26 on a CPU",
        two_bit_type=("int2", "int4"),
        activation_form=("fast", "qdq", "arithmetic"),
        embedding_type=_WITH_BFLOAT16,
        head_type=_WITH_BFLOAT16,
        reasons={
            "float_type": "its quantised kernels compute in float32",
            "integer_type": _SIGNED,
        },
    ),
    "gpu": Preset(
        runtime="ONNX Runtime 1.26 with CUDA",
        opset=(21, 22, 23, 25),
        float_type=("float16", "float32"),
        activation_form=("arithmetic", "qdq"),
        reasons={"activation_form": _NO_FAST, "integer_type": _SIGNED, **_NO_BFLOAT16_TYPES},
    ),
    "qnn": Preset(
        runtime="ONNX Runtime 1.32 with QNN 2.7 (NPU)",
        float_type=("float16",),
        opset=(23,),
        accuracy_level=(1,),
        two_bit_type=("int4",),
        integer_type=("unsigned", "signed"),
        attention=("products", "node"),
        activation_form=("qdq",),
        computes_ranges=False,
        reasons={
            "opset": "before 23 norms are in float32, which the NPU's compiler does not take, and "
            "2-bit types, the only use of 25, were not tried there",
            "float_type": "the NPU's floats are half precision, and its compiler fails on float32",
            "accuracy_level": _NO_LEVEL,
            "two_bit_type": "2-bit weights were not tried there",
            "activation_form": "the NPU recognises quantised layers by QuantizeLinear",
            **_NO_BFLOAT16_TYPES,
        },
    ),
    "openvino": Preset(
        runtime="OpenVINO 2026.4",
        opset=(23, 21, 22),
        accuracy_level=(1,),
        two_bit_type=("int4",),
        activation_form=("arithmetic", "qdq"),
        embedding_type=_WITH_BFLOAT16,
        head_type=_WITH_BFLOAT16,
        keeps_half_steps=False,
        reasons={
            "opset": "OpenVINO reads up to 23",
            "float_type": "OpenVINO chooses the type itself (INFERENCE_PRECISION_HINT)",
            "accuracy_level": _NO_LEVEL,
            "two_bit_type": "OpenVINO has no INT2",
            "integer_type": "its transformations were tried with signed types only",
            "activation_form": _NO_FAST,
        },
    ),
    "webgpu": Preset(
        runtime="ONNX Runtime Web 1.27, transformers.js 4",
        opset=(23, 21, 22),
        float_type=("float16", "float32"),
        two_bit_type=("int4",),
        integer_type=("unsigned", "signed"),
        attention=("products", "node"),
        activation_form=("arithmetic", "qdq"),
        reasons={
            "opset": "2-bit types, the only use of 25, were not tried in a browser",
            "two_bit_type": "2-bit types were not tried in a browser",
            "activation_form": _NO_FAST,
            **_NO_BFLOAT16_TYPES,
        },
    ),
}
