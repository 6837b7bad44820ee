"""The graph: a skeleton model traced by torch.onnx.export with a key-value cache.

    inputs   input_ids, attention_mask, position_ids       int64 [batch, sequence / total]
             past_key_values.I.key, .value                 float [batch, kv_heads, past, head_dim]
    outputs  logits                                        float [batch, sequence, vocabulary]
             present.I.key, .value                         float [batch, kv_heads, total, head_dim]

These are the names that ONNX Runtime GenAI, Optimum and transformers.js look for.
"""

import contextlib
import io
import logging
import warnings
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset21
from torch import Tensor, nn
from transformers import DynamicCache

from lrqat.errors import ExportRefusedError

PREFIX = "lm."
# Distinct and above one: torch.export would take sizes 0 and 1, and equal ones, for constants.
_BATCH, _SEQUENCE, _PAST = 2, 3, 5
_INPUTS = ("input_ids", "attention_mask", "position_ids")


class WithFlatCache(nn.Module):
    """Takes and returns the cache as a flat list, key and value of each layer in turn."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.lm = model

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor,
        past: list[Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """Run the model; returns logits and the cache with the new tokens."""
        cache = DynamicCache()
        for i, (key, value) in enumerate(zip(past[::2], past[1::2], strict=True)):
            cache.update(key, value, i)
        output = self.lm(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=True,
        )
        layers = output.past_key_values.layers
        return output.logits, [part for layer in layers for part in (layer.keys, layer.values)]


def cache_name(prefix: str, layer: int | str, part: str) -> str:
    """Name of one tensor of the cache; `layer` may be a placeholder such as %d."""
    return f"{prefix}.{layer}.{part}"


def cache_names(layers: int, prefix: str) -> list[str]:
    """Names of the flat cache, key and value of each layer in turn."""
    return [cache_name(prefix, i, part) for i in range(layers) for part in ("key", "value")]


def cache_shape(config: Any) -> tuple[int, int, int]:
    """Layers, key-value heads and head size of the cache, from a model's text configuration."""
    heads = int(config.num_attention_heads)
    # Architectures without grouped-query attention (GPT-NeoX, OPT) have no such entry.
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    head_size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    return int(config.num_hidden_layers), kv_heads, head_size


def trace(model: Any, opset: int) -> ir.Model:
    """Export a skeleton to ONNX IR.

    Args:
        model: from `exporters.onnx.skeleton.build_skeleton`.
        opset: ONNX operator set.

    Returns:
        The graph, not yet simplified; initializers have the names of the plan, with `PREFIX` before
        them, and stand-in values.

    Raises:
        ExportRefusedError: torch cannot export this architecture.
    """
    layers, kv_heads, head_size = cache_shape(model.config.get_text_config())
    translation: dict[Any, Any] = {torch.ops.lrqat.dequantize.default: _translate_dequantize}
    with _quiet():
        try:
            program = torch.onnx.export(
                WithFlatCache(model).eval(),
                _example(layers, kv_heads, head_size),
                dynamo=True,
                verbose=False,
                optimize=False,  # done by passes.simplify, which leaves weights alone
                opset_version=opset,
                custom_translation_table=translation,
                input_names=[*_INPUTS, *cache_names(layers, "past_key_values")],
                output_names=["logits", *cache_names(layers, "present")],
                dynamic_shapes=_dynamic_shapes(layers),
            )
        except torch.onnx.OnnxExporterError as error:
            lines = str(error.__cause__ or error).strip().splitlines()
            raise ExportRefusedError(
                f"torch.onnx.export cannot trace {type(model).__name__}: {lines[0]}"
            ) from None
    assert program is not None
    return program.model


def _example(layers: int, kv_heads: int, head_size: int) -> tuple[Any, ...]:
    """Inputs to trace with: a batch of two, some tokens after some others."""
    total = _PAST + _SEQUENCE
    return (
        torch.ones(_BATCH, _SEQUENCE, dtype=torch.int64),
        torch.ones(_BATCH, total, dtype=torch.int64),
        torch.arange(_PAST, total).repeat(_BATCH, 1),
        [torch.zeros(_BATCH, kv_heads, _PAST, head_size) for _ in range(2 * layers)],
    )


def _dynamic_shapes(layers: int) -> dict[str, Any]:
    """Names of the dimensions that vary, as torch.export takes them."""
    sequence = {0: "batch_size", 1: "sequence_length"}
    return {
        "input_ids": sequence,
        "attention_mask": {0: "batch_size", 1: "total_sequence_length"},
        "position_ids": sequence,
        "past": [{0: "batch_size", 2: "past_sequence_length"}] * (2 * layers),
    }


def _translate_dequantize(q: Any, scale: Any, block: int) -> Any:
    if block == 0:
        return opset21.DequantizeLinear(q, scale, axis=1)
    return opset21.DequantizeLinear(q, scale, axis=0, block_size=block)


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
