"""The checkpoint in Olive's format, which the model builder loads without changing a bit.

    NAME.qweight   uint8 (out, in * bits / 8)            integers + 2^(bits-1), lowest bits first
    NAME.scales    float32 (out, blocks)
    NAME.qzeros    uint8 (out, ceil(blocks * bits / 8))   zero-points + 2^(bits-1)

Source: onnxruntime-genai, src/python/py/models/loaders/olive.py.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from exporters.floating import as_float32
from exporters.onnx.folder.companions import copy_text_files
from exporters.onnx_genai.parts import Part, is_spelled_out
from exporters.onnx_genai.planning import Plan
from lrqat.atomic_files import write_json


def write_olive(plan: Plan, folder: Path, progress: Callable[[str], None]) -> None:
    """Write the checkpoint of `plan` into `folder`: one file per trained weight, one for the rest.

    Args:
        plan: the export.
        folder: an empty folder.
        progress: called with the name of every part as it is written.
    """
    checkpoint = plan.checkpoint
    for part in plan.tensors:
        progress(part.name)
        save_file(_packed(plan, part), folder / f"{part.name}.safetensors")
    names = checkpoint.floating_names
    floating = {name: as_float32(name, checkpoint.floating(name)) for name in names}
    for name in filter(partial(is_spelled_out, checkpoint), checkpoint.quantized_names):
        floating[f"{name}.weight"] = checkpoint.quantized(name).dequantize()
    save_file(floating, folder / "floating.safetensors")
    config = {**checkpoint.config, "dtype": "float32", "quantization_config": _config(plan.tensors)}
    write_json(folder / "config.json", config)
    copy_text_files(checkpoint, folder)


def _config(parts: list[Part]) -> dict[str, Any]:
    return {
        "quant_method": "olive",
        "bits": parts[0].bits,
        "group_size": parts[0].block,
        "symmetric": True,
        "overrides": {p.module: {"bits": p.bits, "group_size": p.block} for p in parts},
    }


def _packed(plan: Plan, part: Part) -> dict[str, NDArray[Any]]:
    q, scale, zero = part.read(plan.checkpoint)
    return {
        f"{part.module}.qweight": pack(q, part.bits),
        f"{part.module}.scales": scale,
        f"{part.module}.qzeros": pack(zero, part.bits),
    }


def pack(q: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """Integers (rows, n) as q + 2^(bits-1) in bytes (rows, ceil(n * bits / 8)), low bits first."""
    count = 8 // bits
    codes = q.astype(np.uint8) + np.uint8(1 << (bits - 1))  # wraps, as it should
    codes = np.pad(codes, ((0, 0), (0, -q.shape[1] % count)))
    return np.bitwise_or.reduce(codes.reshape(len(q), -1, count) << _shifts(bits), axis=2)


def unpack(codes: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int8]:
    """Undo `pack`: integers (rows, count)."""
    values = (codes[:, :, None] >> _shifts(bits)) & np.uint8((1 << bits) - 1)
    values -= np.uint8(1 << (bits - 1))
    return values.reshape(len(codes), -1)[:, :count].view(np.int8)


def _shifts(bits: int) -> NDArray[np.uint8]:
    """How far each integer of a byte is shifted."""
    return np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
