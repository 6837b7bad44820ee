"""What a user may choose about an ONNX export."""

from dataclasses import dataclass, field

from lrqat.errors import ExportRefusedError

_OPSETS = (21, 22, 23)
_ACCURACY_LEVELS = (0, 1, 4)


@dataclass(frozen=True)
class Options:
    """Choices; the defaults are exact.

    Raises:
        ExportRefusedError: a value that is not offered.
    """

    opset: int = field(
        default=23,
        metadata={
            "help": "ONNX operator set: 23 has Attention, RotaryEmbedding and RMSNormalization as "
            "single nodes; 21 is the first with 4-bit blocks, for older runtimes"
        },
    )
    accuracy_level: int = field(
        default=1,
        metadata={
            "help": "ONNX Runtime's for quantised products, written to genai_config.json: 0 and 1 "
            "compute in float32, as trained; 4 rounds activations to 8 bits, faster and not exact"
        },
    )

    def __post_init__(self) -> None:
        if self.opset not in _OPSETS:
            raise ExportRefusedError(
                f"--opset {self.opset} is not offered; choose {', '.join(map(str, _OPSETS))}"
            )
        if self.accuracy_level not in _ACCURACY_LEVELS:
            raise ExportRefusedError(
                f"--accuracy-level {self.accuracy_level} is not offered; choose "
                f"{', '.join(map(str, _ACCURACY_LEVELS))}"
            )
