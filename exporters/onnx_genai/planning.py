"""The plan of the compact form: every trained part, and every reason to refuse."""

import re
from dataclasses import asdict, dataclass, field
from typing import Any

from exporters.onnx.tracing.probe import probe
from exporters.onnx_genai.options import Options
from exporters.onnx_genai.parts import HEAD, Part, is_spelled_out, part_of, refuses
from exporters.planning import any_layer, remarks
from lrqat.architectures import ARCHITECTURES, find_architecture
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import UserError

_HEAD = 16


@dataclass(eq=False)
class Plan:
    """What `write` will do.

    Attributes:
        checkpoint: the opened checkpoint.
        options: the choices it was made with.
        tensors: every trained part.
        refusals: reasons not to write; a plan with any cannot be written.
        notes: what a user should know.
    """

    checkpoint: Checkpoint
    options: Options
    tensors: list[Part] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the trained parts; what the builder adds comes on top."""
        return sum(part.nbytes for part in self.tensors)

    @property
    def compared(self) -> str:
        """What `write` compares with the checkpoint."""
        return "every trained weight, the embedding and the head"

    def summary(self) -> list[str]:
        """Lines of a table for people; the layers of a model share a line."""
        groups: dict[tuple[str, int, int], list[Part]] = {}
        for part in self.tensors:
            name = any_layer(part.name)
            groups.setdefault((name, part.bits, part.block), []).append(part)
        lines = [f"{'trained weight':<44} {'bits':>4} {'block':>5} {'count':>5} {'bytes':>14}"]
        for (name, bits, block), members in groups.items():
            total = sum(part.nbytes for part in members)
            lines.append(f"{name:<44} {bits:>4} {block:>5} {len(members):>5} {total:>14,}")
        return lines + remarks(self.notes, self.refusals)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return {
            "format": "onnx-genai",
            "checkpoint": str(self.checkpoint.path),
            "options": asdict(self.options),
            "tensor_bytes": self.tensor_bytes,
            "tensors": [asdict(part) for part in self.tensors],
            "notes": self.notes,
            "refusals": self.refusals,
        }


def plan(checkpoint: Checkpoint, options: Options | None = None) -> Plan:
    """Plan the compact form of `checkpoint`; no weights are read and nothing is written.

    Raises:
        CheckpointError: the checkpoint itself is not valid.
    """
    made = Plan(checkpoint, options or Options())
    for name in checkpoint.quantized_names:
        if is_spelled_out(checkpoint, name):
            made.notes.append(
                f"{name} is float32, the products of its integers and scales: the builder takes an "
                "embedding of integers only where it is the head too"
            )
            continue
        try:
            checkpoint.grid(name).groups(checkpoint.shape(name)[1])
            reason = refuses(checkpoint, name)
        except UserError as error:
            reason = str(error)
        if reason:
            made.refusals.append(f"{name}: {reason}")
        else:
            made.tensors.append(part_of(checkpoint, name))
    made.refusals += _refusals(checkpoint, made.tensors)
    made.notes.append(
        "unquantized weights are float32; since the builder may fold those of norms into others, "
        f"what is compared with the checkpoint is {made.compared}"
    )
    return made


def default_name(checkpoint: Checkpoint, options: Options | None = None) -> str:
    """The folder inside the checkpoint's."""
    return "onnx-genai"


def _refusals(checkpoint: Checkpoint, parts: list[Part]) -> list[str]:
    found = []
    model_type = checkpoint.config.get("model_type")
    if not find_architecture(model_type).genai_builder:
        proved = ", ".join(name for name, entry in ARCHITECTURES.items() if entry.genai_builder)
        found.append(
            f"the compact form was proved for {proved}, not for {model_type}; use --format onnx"
        )
    else:
        found += _refuses_heads(checkpoint)
    kept = [name for name in checkpoint.manifest["kept"] if name != HEAD]
    if kept:
        found.append(
            f"{kept[0]} is unquantized, and onnxruntime-genai's builder takes all projections of "
            "the layers quantized; use --format onnx"
        )
    joined: dict[str, set[tuple[int, int]]] = {}
    for part in parts:
        if re.search(r"\.[qkv]_proj$", part.name):
            joined.setdefault(part.name[:-7], set()).add((part.bits, part.block))
    mixed = [name for name, forms in joined.items() if len(forms) > 1]
    if mixed:
        found.append(
            f"{mixed[0]}: q, k and v have several widths or groups, and the builder makes one "
            "matrix of them; use --format onnx"
        )
    if checkpoint.manifest.get("activations"):
        found.append(
            "the model was trained with fake-quantized activations or a quantized cache, and the "
            "builder's graph rounds neither; use --format onnx"
        )
    return found


def _refuses_heads(checkpoint: Checkpoint) -> list[str]:
    """Sizes of heads that ONNX Runtime's GroupQueryAttention does not rotate.

    Source: onnxruntime, contrib_ops/cpu/bert/rotary_embedding_helper.h.
    """
    cache = probe(checkpoint.config).cache
    if cache is None or cache.head_size % _HEAD == 0:
        return []
    return [
        f"its heads have {cache.head_size} numbers, and ONNX Runtime's GroupQueryAttention rotates "
        f"multiples of {_HEAD}; use --format onnx"
    ]
