"""Writing a planned ONNX folder: streamed, read back, compared, and only then given its name."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir

from exporters.onnx.activations import cache_bits
from exporters.onnx.folder.companions import write_companions
from exporters.onnx.folder.external_data import data_paths, save
from exporters.onnx.folder.loadable import refuse_invalid, refuse_unloadable
from exporters.onnx.folder.model_file import MODEL
from exporters.onnx.passes.attach_weights import attach_weights
from exporters.onnx.passes.compact_attention import (
    ATTENTION_OPSET,
    compact_attention,
    with_cache_inside,
)
from exporters.onnx.passes.describe import describe
from exporters.onnx.passes.plain_mask import plain_mask
from exporters.onnx.passes.simplify import simplify
from exporters.onnx.plans import Plan
from exporters.onnx.tracing.cache import cache_form
from exporters.onnx.tracing.skeleton import build_skeleton
from exporters.onnx.tracing.trace import trace
from exporters.onnx.verification import verify
from exporters.planning import refuse_inexact
from lrqat.atomic_files import refuse_occupied, replaced_folder
from lrqat.errors import OutputError

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        path: the folder.
        bytes: size of model.onnx and its data.
        tensors: weights that were compared with the checkpoint.
        quantized: how many of them are trained integers.
        rounded: values of embedding and head that were rounded because the options asked for it.
        passes: whether each pass over the graph changed anything, by its name.
        notes: what a user should know.
    """

    path: str
    bytes: int
    tensors: int
    quantized: int
    rounded: int = 0
    passes: dict[str, bool] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return asdict(self)


def write(
    plan: Plan,
    path: str | Path,
    overwrite: bool = False,
    progress: Progress = lambda name: None,
    verified: Progress = lambda name: None,
) -> Report:
    """Write `plan` to the folder `path`.

    The folder gets its name only after the file has been read back, every weight compared with the
    checkpoint, and onnx's checker and ONNX Runtime (if installed) have taken it; if anything fails,
    `path` is as it was.

    Args:
        plan: what `exporters.onnx.plan` returned, without refusals.
        path: folder to write.
        overwrite: whether an existing folder may be replaced.
        progress: called with the name of every tensor as it is written.
        verified: called with the name of every tensor once it has been compared.

    Raises:
        ExportRefusedError: the plan has refusals, or torch cannot trace the model.
        OutputError: the folder exists, cannot be written, reads back differently, or does not load.
    """
    refuse_inexact(plan.refusals)
    target = Path(path)
    refuse_occupied(target, overwrite, MODEL)  # before the long part
    skeleton = build_skeleton(plan)
    form = cache_form(cache_bits(plan.checkpoint), plan.options.kv_cache == "integers")
    assert plan.cache is not None  # a plan without has refusals
    model = trace(skeleton, _opset(plan), form, plan.cache)
    passes = _transform(model, plan, progress)
    with replaced_folder(target, overwrite, MODEL) as staging:
        save(model, staging)
        write_companions(plan, staging, skeleton.config)
        _refuse_mismatches(verify(staging, plan.checkpoint, verified), target)
        refuse_invalid(staging, target)
        refuse_unloadable(staging, target)
        size = sum(path.stat().st_size for path in (staging / MODEL, *data_paths(staging)))
    quantized = sum(tensor.trained for tensor in plan.tensors)
    rounded = sum(choice.changed for choice in plan.choices)
    notes = [*plan.notes_of_folder, *_attention_notes(model, plan, plan.cache.layers)]
    return Report(str(target), size, len(plan.tensors), quantized, rounded, passes, notes)


def _transform(model: ir.Model, plan: Plan, progress: Progress) -> dict[str, bool]:
    """Make the traced graph what the file holds; whether each pass changed anything."""
    return {
        "simplify": simplify(model, (tensor.name for tensor in plan.tensors)),
        "compact_attention": compact_attention(model),
        "plain_mask": plain_mask(model),
        "attach_weights": attach_weights(model, plan, progress),
        "describe": describe(model, plan),
    }


def _attention_notes(model: ir.Model, plan: Plan, layers: int) -> list[str]:
    """What `compact_attention` passed over, where the options ask for one node per layer."""
    fused = with_cache_inside(model)
    asked = plan.options.attention == "node" and _opset(plan) >= ATTENTION_OPSET
    if not asked or fused >= layers:
        return []
    nodes = sum(node.op_type == "Attention" for node in model.graph)
    products = layers - nodes
    others = f"{products} written as products and a softmax by transformers" * (products > 0)
    joined = f"{nodes - fused} with a cache that is more than a concatenation" * (nodes > fused)
    return [
        f"{fused} of {layers} attentions became one node with the cache inside: "
        f"{', '.join(filter(None, (others, joined)))}; the results are the same, but every token "
        "copies the cache more often"
    ]


def _opset(plan: Plan) -> int:
    return int(plan.options.opset or 0)  # a plan's is never None


def _refuse_mismatches(mismatches: dict[str, int], target: Path) -> None:
    wrong = [name for name, count in mismatches.items() if count]
    if wrong:
        raise OutputError(
            f"{target} was not written: {len(wrong)} tensors read back differently, the first "
            f"{wrong[0]}; check the disk, and report this if it happens again"
        )
