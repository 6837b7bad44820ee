"""The plan of an ONNX folder, as what it says: every initializer, and every reason to refuse."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

import onnx_ir as ir

from exporters.embedding_and_head import EmbeddingAndHead
from exporters.onnx.activations import Rounding, cache_bits
from exporters.onnx.options import PRECISION_ENTRY, Options
from exporters.onnx.tracing.probe import CacheShape
from exporters.onnx.weights.embedding_and_head import EmbeddingOrHeadType
from exporters.planning import any_layer, remarks
from lrqat.architectures import genai_type
from lrqat.checkpoint.reader import Checkpoint

_INTEGERS = ("integers", "codes")
_FAST_IN_8_BITS = 4  # accuracy level of ONNX Runtime


@dataclass(frozen=True)
class PlannedTensor:
    """One initializer of the file.

    Attributes:
        name: in the ONNX file.
        form: how it lies there, a name in `exporters.onnx.weights.initializers.FORMS`.
        source: module name of a projection, or name of an unquantized tensor, in the checkpoint.
        dtype: ONNX element type.
        shape: in the ONNX file.
        rounded: whether it is of an embedding or head that was rounded to integers, as asked for.
    """

    name: str
    form: str
    source: str
    dtype: ir.DataType
    shape: tuple[int, ...]
    rounded: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of its data."""
        return math.ceil(math.prod(self.shape) * self.dtype.bitwidth / 8)

    @property
    def trained(self) -> bool:
        """Whether it is trained integers."""
        return self.form in _INTEGERS and not self.rounded

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "name": self.name,
            "type": self.dtype.name,
            "shape": list(self.shape),
            "bytes": self.nbytes,
            "source": self.source,
            "quantized": self.trained,
        }


@dataclass(eq=False)
class Plan:
    """What `write` will do.

    Attributes:
        checkpoint: the opened checkpoint.
        options: the choices it was made with, none left open.
        embedding_and_head: their module names.
        tensors: every initializer that holds weights.
        choices: what those of the two that are unquantized are stored in.
        roundings: how inputs of layers are rounded, by module name.
        integer_products: modules whose products are those of 8-bit integers on both sides.
        refusals: reasons not to write; a plan with any cannot be written.
        notes: what a user should know.
        cache: the form of the model's cache; None if the model is refused.
    """

    checkpoint: Checkpoint
    options: Options
    embedding_and_head: EmbeddingAndHead
    tensors: list[PlannedTensor] = field(default_factory=list)
    choices: list[EmbeddingOrHeadType] = field(default_factory=list)
    roundings: dict[str, Rounding] = field(default_factory=dict)
    integer_products: frozenset[str] = frozenset()
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    cache: CacheShape | None = None

    @property
    def session_entries(self) -> dict[str, str]:
        """What ONNX Runtime has to be told, to compute the file as meant."""
        precise = {PRECISION_ENTRY: "1"} if self.integer_products else {}
        return self.options.session_entries | precise

    @property
    def loads_head(self) -> bool:
        """Whether the weight of the head is computed in floating point when the model is loaded.

        ONNX Runtime's CPU kernels that compute in float32 exist for 4 bits; a product with 8 bits
        takes some fifty times as long as one with the same weight in float32. The file keeps the
        integers either way. At accuracy level 4 it has kernels for both, which round the head's
        inputs: they are for whoever asks for them, and for models that were trained so.
        """
        if self.options.preset != "cpu":
            return False
        head = self.embedding_and_head.of_logits
        trained = (self.checkpoint.manifest.get("activations") or {}).get("modules", {})
        if self.options.accuracy_level == _FAST_IN_8_BITS and (not trained or head in trained):
            return False
        return any(
            t.source == head and t.form in _INTEGERS and t.dtype == ir.DataType.INT8
            for t in self.tensors
        )

    @property
    def compared(self) -> str:
        """What `write` compares with the checkpoint."""
        return "every tensor"

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def refuses_genai(self) -> str | None:
        """Why ONNX Runtime GenAI does not take the folder, and what to do; None: it does."""
        bits = cache_bits(self.checkpoint)
        if bits is not None and self.options.kv_cache == "integers":
            return (
                f"keys and values are passed on as {bits}-bit integers with their scales; "
                "--kv-cache float is for it"
            )
        kind = self.checkpoint.config.get("model_type")
        if genai_type(kind) is None:
            return f"its list of model types has no {kind}; ONNX Runtime alone runs the folder"
        return None

    @property
    def notes_of_folder(self) -> list[str]:
        """What a user of the folder should know, for the plan and the report."""
        reason = self.refuses_genai
        if reason is None:
            return []
        return [f"no genai_config.json: ONNX Runtime GenAI does not take the model: {reason}"]

    def summary(self) -> list[str]:
        """Lines of a table for people; the layers of a model share a line."""
        groups: dict[tuple[str, str, str], list[PlannedTensor]] = {}
        for tensor in self.tensors:
            shape = " x ".join(map(str, tensor.shape))
            name = any_layer(tensor.name)
            groups.setdefault((name, tensor.dtype.name, shape), []).append(tensor)
        lines = [f"{'initializer':<52} {'type':<8} {'shape':>14} {'count':>5} {'bytes':>14}"]
        for (name, dtype, shape), members in groups.items():
            total = sum(tensor.nbytes for tensor in members)
            lines.append(f"{name:<52} {dtype:<8} {shape:>14} {len(members):>5} {total:>14,}")
        lines.append(f"{len(self.tensors)} initializers, {self.tensor_bytes:,} bytes")
        lines += [choice.line() for choice in self.choices]
        return lines + remarks(self.notes, self.refusals)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "format": "onnx",
            "checkpoint": str(self.checkpoint.path),
            "options": self.options.to_json(),
            "tensor_bytes": self.tensor_bytes,
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "choices": [asdict(choice) for choice in self.choices],
            "notes": self.notes,
            "refusals": self.refusals,
        }
