"""What a user may choose about an ONNX export."""

from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import onnx_ir as ir

from exporters.onnx.presets import PRESETS
from lrqat.errors import ExportRefusedError, did_you_mean

# Under this name a file says what it was made with, so that `verify` can plan the same again.
OPTIONS_KEY = "lrqat.options"
# Entries of a session's configuration: how quantised products compute; and whether they are made of
# DequantizeLinear and MatMul before a device is chosen, and not just for ONNX Runtime's own kernels
# on CPU and CUDA. (core/optimizer/dq_matmulnbits_fusion.cc, which takes unsigned types only.)
LEVEL_ENTRY = "session.qdq_matmulnbits_accuracy_level"
FUSION_ENTRY = "session.enable_dq_matmulnbits_fusion"
# Products of 8-bit activations and 8-bit weights are summed up in 16 bits on x86 without VNNI, and
# saturate there, unless this is set: for files that have such products. Other processors pay no
# heed to it. (include/onnxruntime/core/session/onnxruntime_session_options_config_keys.h)
PRECISION_ENTRY = "session.x64quantprecision"
_INT2_OPSET = 25
_FLOAT_TYPES = {"float32": ir.DataType.FLOAT, "float16": ir.DataType.FLOAT16}


def _choice(help_text: str) -> Any:
    return field(default=None, metadata={"help": help_text, "default": "the preset's"})


@dataclass(frozen=True)
class Options:
    """Choices; None leaves one to the preset.

    Raises:
        ExportRefusedError: a value that is not offered, or that does not go with another.
    """

    preset: str = field(
        default="cpu",
        metadata={
            "help": "what the file is for, which chooses the options below: cpu, gpu, qnn, "
            "openvino or webgpu"
        },
    )
    opset: int | None = _choice(
        "ONNX operator set: 23 has Attention, RotaryEmbedding and RMSNormalization as single "
        "nodes; 21 is the first with 4-bit blocks, for older runtimes; 25 the first with 2 bits"
    )
    float_type: str | None = _choice(
        "float32, as trained, or float16: half precision; what is unquantized is rounded to it"
    )
    accuracy_level: int | None = _choice(
        "ONNX Runtime's for quantised products, written to genai_config.json: 0 and 1 "
        "compute in float32, as trained; 4 rounds activations to 8 bits, faster and not exact"
    )
    two_bit_type: str | None = _choice("type of 2-bit integers: int2, or int4 for older runtimes")
    integer_type: str | None = _choice(
        "weights in signed types of ONNX, or in unsigned ones with zero-points, of which ONNX "
        "Runtime makes quantised products on WebGPU and QNN too; the weights are the same"
    )
    attention: str | None = _choice(
        "node: one per layer where the operator set has it (23); products: matrix products and a "
        "softmax, which devices without that node compute"
    )
    activation_form: str | None = _choice(
        "static activation ranges as qdq (QuantizeLinear, DequantizeLinear), as arithmetic (the "
        "same in floats), or fast: whichever ONNX Runtime's CPU kernels are fast with"
    )
    embedding_type: str | None = _choice(
        "type of an embedding that was not trained on a grid: auto (as the checkpoint stores it, "
        "where the runtime takes that), float32, float16, bfloat16, or rounded to int8 rows"
    )
    head_type: str | None = _choice(
        "type of an output head that was not trained on a grid: as --embedding-type, which also "
        "decides for a head that is the embedding"
    )
    kv_cache: str = field(
        default="integers",
        metadata={
            "help": "how a model with rounded keys and values passes its cache on: integers with "
            "their scales, or float: the values, as ONNX Runtime GenAI takes them"
        },
    )

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            hint = did_you_mean(self.preset, PRESETS)
            raise ExportRefusedError(
                f"--preset {self.preset} is not offered: {hint}choose {', '.join(PRESETS)}"
            )
        _refuse_other("kv_cache", self.kv_cache, {"integers", "float"})
        for name in _PRESET_FIELDS:
            self._check(name, getattr(self, name))
        if self.two_bit_type == "int2" and (self.opset or _INT2_OPSET) < _INT2_OPSET:
            raise ExportRefusedError(
                f"--two-bit-type int2 does not go with --opset {self.opset}: the type came with "
                f"{_INT2_OPSET}; leave one of them out"
            )

    def _check(self, name: str, value: Any) -> None:
        if value is None:
            return
        _refuse_other(name, value, {v for p in PRESETS.values() for v in getattr(p, name)})
        chosen = PRESETS[self.preset]
        possible = getattr(chosen, name)
        if value not in possible:
            flag = _flag(name)
            choices = " or ".join(map(str, possible))
            raise ExportRefusedError(
                f"{flag} {value} does not go with --preset {self.preset}: {chosen.reasons[name]}; "
                f"it takes {flag} {choices}"
            )

    def resolved(self) -> "Options":
        """The same with the preset's choice for every None, but for an open operator set."""
        row = PRESETS[self.preset]
        open_ones = {n for n in _PRESET_FIELDS if n != "opset" and getattr(self, n) is None}
        found = {name: getattr(row, name)[0] for name in open_ones}
        if self.opset is not None and self.opset < _INT2_OPSET:
            found["two_bit_type"] = "int4"
        return replace(self, **found)

    def with_level(self, level: int) -> "Options":
        """The same with another accuracy level."""
        return replace(self, accuracy_level=level)

    def with_integers(self, two_bits: bool) -> "Options":
        """Resolved options once it is known whether the file has 2-bit integers: none is open."""
        if two_bits:
            return replace(self, opset=_INT2_OPSET)
        opset = self.opset or PRESETS[self.preset].opset[0]
        return replace(self, opset=opset, two_bit_type="int4")

    @property
    def float_dtype(self) -> ir.DataType:
        """ONNX type of everything that is not an integer; of resolved options."""
        return _FLOAT_TYPES[str(self.float_type)]

    @property
    def session_entries(self) -> dict[str, str]:
        """What ONNX Runtime has to be told, to compute the file as meant; of resolved options."""
        # Without a level ONNX Runtime takes 4, which rounds activations.
        entries = {LEVEL_ENTRY: str(self.accuracy_level)}
        return entries | ({FUSION_ENTRY: "1"} if self.integer_type == "unsigned" else {})

    def to_json(self) -> dict[str, Any]:
        """Plain values: `Options(**options.to_json())` are the same choices."""
        return asdict(self)


_PRESET_FIELDS = tuple(f.name for f in fields(Options) if f.default is None)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _refuse_other(name: str, value: Any, choices: set[Any]) -> None:
    if value not in choices:
        known = ", ".join(map(str, sorted(choices)))
        raise ExportRefusedError(f"{_flag(name)} {value} is not offered; choose {known}")
