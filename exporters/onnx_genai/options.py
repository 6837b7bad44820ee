"""What a user may choose about the compact form."""

from dataclasses import dataclass, field

from lrqat.errors import ExportRefusedError

_LEVELS = (0, 1, 4)


@dataclass(frozen=True)
class Options:
    """Choices; the defaults are exact.

    Raises:
        ExportRefusedError: a value that is not offered.
    """

    matmul_accuracy_level: int = field(
        default=1,
        metadata={
            "help": "accuracy_level of every MatMulNBits of the graph: 0 and 1 compute in float32, "
            "as trained; 4, the builder's own default, rounds activations to 8 bits, faster and "
            "not exact"
        },
    )

    def __post_init__(self) -> None:
        if self.matmul_accuracy_level not in _LEVELS:
            raise ExportRefusedError(
                f"--matmul-accuracy-level {self.matmul_accuracy_level} is not offered; choose "
                f"{', '.join(map(str, _LEVELS))}"
            )
