"""Presets: what an ONNX file should be for the runtime that is going to run it.

A row lists, for every option, the values that go with the runtime; the first is taken where the
user says nothing, and any other value is refused, with the reason. Options are those of
`exporters.onnx.options.Options`. What was run and what was not is in docs/onnx-grids.md.
"""

from dataclasses import dataclass, field

ALL_OPSETS = (21, 22, 23, 25)
_TABLES = ("auto", "float32", "float16", "int8")


@dataclass(frozen=True)
class Preset:
    """One row.

    Attributes:
        runtime: what it is for, and the least version.
        opset: ONNX operator sets.
        float_type: of everything that is not an integer.
        accuracy_level: ONNX Runtime's, see `Options`.
        two_bit_type: type of 2-bit integers.
        activation_form: how static ranges are written.
        embedding_type: of an embedding that was not trained on a grid, see `exporters.onnx.tables`.
        head_type: the same of an output head.
        keeps_half_steps: whether the runtime rounds to half precision where the graph does and goes
            on in float32, which is how `q8_0` rounds the steps of activations.
        reasons: why an option has not all values, by its name.
    """

    runtime: str
    opset: tuple[int, ...] = (23, 21, 22, 25)
    float_type: tuple[str, ...] = ("float32",)
    accuracy_level: tuple[int, ...] = (1, 0, 4)
    two_bit_type: tuple[str, ...] = ("int4", "int2")
    activation_form: tuple[str, ...] = ("qdq", "arithmetic", "fast")
    embedding_type: tuple[str, ...] = _TABLES
    head_type: tuple[str, ...] = _TABLES
    keeps_half_steps: bool = True
    reasons: dict[str, str] = field(default_factory=dict)


_NO_FAST = "there is no CPU kernel of ONNX Runtime's to be fast in"
_NO_LEVEL = "only ONNX Runtime's own kernels have an accuracy level"
_NO_BFLOAT16 = "tables in bfloat16 were not tried there"
_NO_BFLOAT16_TABLES = {"embedding_type": _NO_BFLOAT16, "head_type": _NO_BFLOAT16}
_WITH_BFLOAT16 = (*_TABLES, "bfloat16")

PRESETS: dict[str, Preset] = {
    "cpu": Preset(
        runtime="ONNX Runtime 1.26 on a CPU",
        two_bit_type=("int2", "int4"),
        activation_form=("fast", "qdq", "arithmetic"),
        embedding_type=_WITH_BFLOAT16,
        head_type=_WITH_BFLOAT16,
        reasons={"float_type": "its quantised kernels compute in float32"},
    ),
    "gpu": Preset(
        runtime="ONNX Runtime 1.26 with CUDA",
        opset=(21, 22, 23, 25),
        float_type=("float16", "float32"),
        activation_form=("arithmetic", "qdq"),
        reasons={"activation_form": _NO_FAST, **_NO_BFLOAT16_TABLES},
    ),
    "qnn": Preset(
        runtime="ONNX Runtime 1.26 with QNN 2.4 (NPU)",
        opset=(21, 22, 23),
        accuracy_level=(1,),
        two_bit_type=("int4",),
        activation_form=("qdq",),
        reasons={
            "opset": "the NPU takes 4-bit weights, which need no more than 21",
            "float_type": "the NPU computes in the integers of QuantizeLinear",
            "accuracy_level": _NO_LEVEL,
            "two_bit_type": "2-bit weights were not tried there",
            "activation_form": "the NPU recognises quantised layers by QuantizeLinear",
            **_NO_BFLOAT16_TABLES,
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
            "activation_form": _NO_FAST,
        },
    ),
    "webgpu": Preset(
        runtime="ONNX Runtime Web 1.26, transformers.js 4",
        opset=(21, 22, 23),
        float_type=("float16", "float32"),
        two_bit_type=("int4",),
        activation_form=("arithmetic", "qdq"),
        reasons={
            "opset": "2-bit types, the only use of 25, were not tried in a browser",
            "two_bit_type": "2-bit types were not tried in a browser",
            "activation_form": _NO_FAST,
            **_NO_BFLOAT16_TABLES,
        },
    ),
}
