"""The graph: a skeleton model traced by torch.onnx.export with a key-value cache.

    inputs   input_ids, attention_mask, position_ids       int64 [batch, sequence / total]
             past_key_values.I.key, .value                 float [batch, kv_heads, past, head_dim]
    outputs  logits                                        float [batch, sequence, vocabulary]
             present.I.key, .value                         float [batch, kv_heads, total, head_dim]

A cache that was rounded in training may be passed on in other parts
(`exporters.onnx.tracing.cache`). These are the names that ONNX Runtime GenAI, Optimum and
transformers.js look for.
"""

import contextlib
import io
import logging
import warnings
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn
from transformers import DynamicCache

from exporters.onnx.tracing.cache import CacheForm
from exporters.onnx.tracing.operators import TRANSLATION
from lrqat.errors import ExportRefusedError

MOST_OPSET = 23  # what torch traces for
# What a model is made with: transformers' "eager" is written as products, and what it chooses by
# itself as one node.
ATTENTION: dict[str, dict[str, str]] = {
    "node": {}, "products": {"attn_implementation": "eager"}
}  # fmt: skip
_PREFIX = "lm."  # WithFlatCache's, before the names of the model's own tensors
# Distinct and above one: torch.export would take sizes 0 and 1, and equal ones, for constants.
_BATCH, _SEQUENCE, _PAST = 2, 3, 5
_INPUTS = ("input_ids", "attention_mask", "position_ids")


class WithFlatCache(nn.Module):
    """Takes and returns the cache as a flat list, the parts of each layer in turn."""

    def __init__(self, model: Any, form: CacheForm) -> None:
        super().__init__()
        self.lm, self.form = model, form

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: list[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the model; returns logits and the cache with the new tokens."""
        cache = DynamicCache()
        count = len(self.form.parts)
        for i in range(0, len(past), count):
            layer = self.form.layer()
            self.form.load(layer, past[i : i + count])
            cache.layers.append(layer)
        output = self.lm(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        layers = output.past_key_values.layers
        return output.logits, [part for layer in layers for part in self.form.parts_of(layer)]


def cache_name(prefix: str, layer: int | str, part: str) -> str:
    """Name of one tensor of the cache; `layer` may be a placeholder such as %d."""
    return f"{prefix}.{layer}.{part}"


def cache_names(layers: int, prefix: str, form: CacheForm) -> list[str]:
    """Names of the flat cache, the parts of each layer in turn."""
    return [cache_name(prefix, i, part.name) for i in range(layers) for part in form.parts]


def trace(model: Any, opset: int, form: CacheForm, shape: tuple[int, int, int]) -> ir.Model:
    """Export a skeleton to ONNX IR.

    Args:
        model: from `exporters.onnx.tracing.skeleton.build_skeleton`.
        opset: ONNX operator set; `MOST_OPSET` is traced for in place of a newer one.
        form: of the cache.
        shape: of the cache: layers, key-value heads, head size.

    Returns:
        The graph, not yet simplified; initializers have the names of the plan, and placeholders for
        values.

    Raises:
        ExportRefusedError: torch cannot export this architecture.
    """
    layers = shape[0]
    with _quiet():
        try:
            program = torch.onnx.export(
                WithFlatCache(model, form).eval(),
                example(*shape, form, model.dtype),
                dynamo=True,
                verbose=False,
                optimize=False,  # done by passes.simplify, which leaves weights alone
                opset_version=min(opset, MOST_OPSET),
                custom_translation_table=TRANSLATION,
                input_names=[*_INPUTS, *cache_names(layers, "past_key_values", form)],
                output_names=["logits", *cache_names(layers, "present", form)],
                dynamic_shapes=_dynamic_shapes(layers * len(form.parts)),
            )
        except torch.onnx.OnnxExporterError as error:
            lines = str(error.__cause__ or error).strip().splitlines()
            raise ExportRefusedError(
                f"torch.onnx.export cannot trace {type(model).__name__}: {lines[0]}"
            ) from None
    assert program is not None
    _name_as_planned(program.model)
    return program.model


def _name_as_planned(model: ir.Model) -> None:
    for name, value in list(model.graph.initializers.items()):
        if name.startswith(_PREFIX):
            # Renaming an initializer's value re-keys it in the graph.
            value.name = name.removeprefix(_PREFIX)


def example(
    layers: int,
    kv_heads: int,
    head_size: int,
    form: CacheForm,
    dtype: torch.dtype,
    device: str = "cpu",
) -> tuple[Any, ...]:
    """Inputs to trace with: a batch of two, some tokens after some others."""
    total = _PAST + _SEQUENCE
    with torch.device(device):
        past = [
            torch.zeros(_BATCH, kv_heads, _PAST, part.width(head_size), dtype=part.dtype or dtype)
            for _ in range(layers)
            for part in form.parts
        ]
        return (
            torch.ones(_BATCH, _SEQUENCE, dtype=torch.int64),
            torch.ones(_BATCH, total, dtype=torch.int64),
            torch.arange(_PAST, total).repeat(_BATCH, 1),
            past,
        )


def _dynamic_shapes(parts: int) -> dict[str, Any]:
    """Names of the dimensions that vary, as torch.export takes them."""
    sequence = {0: "batch_size", 1: "sequence_length"}
    return {
        "input_ids": sequence,
        "attention_mask": {0: "batch_size", 1: "total_sequence_length"},
        "position_ids": sequence,
        "past": [{0: "batch_size", 2: "past_sequence_length"}] * parts,
    }


@contextlib.contextmanager
def _quiet() -> Any:
    """Keep the exporter's progress and advice off the screen; errors still raise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
