"""Fusing: a trained model becomes integers and scales in a Hugging Face folder.

A and B disappear into the integers, so the result costs nothing at inference. The folder is in
compressed-tensors' `pack-quantized` format, which transformers reads as it is, and `lrqat.json`
(see `lrqat.manifest`) says the rest. The integers are written as they stand; the library's own
`compress()`, which takes floats and quantises, is not used.
"""

import copy
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn

import lrqat
from lrqat import manifest as manifests
from lrqat.checkpoint import PACKED, SCALE, SHAPE
from lrqat.errors import ModelError
from lrqat.grid import Grid
from lrqat.layer import LRQATLinear
from lrqat.packing import container_bits, pack_rows
from lrqat.publish import staged_folder
from lrqat.surgery import SurgeryPlan, quantized_layers
from lrqat.write_json import write_json

_CARD = """---
library_name: transformers
tags: [lr-qat, compressed-tensors]
---
Trained with LR-QAT on the grid `{grid}` from `{base}` by lrqat {version}.

The integers and scales here are the ones that were trained; `lrqat.json` records the grid, where
they came from, the reference perplexity and the sha256 of every file.

    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(".")          # float32: every weight is exact

    python tools/export.py . --format gguf                     # llama.cpp
    python tools/export.py . --format onnx                     # ONNX Runtime
"""


def fuse(
    model: Any,
    tokenizer: Any,
    path: str | Path,
    *,
    plan: SurgeryPlan,
    base_model: dict[str, Any],
    training: dict[str, Any] | None = None,
    reference: dict[str, Any] | None = None,
) -> Path:
    """Write the fused checkpoint of a prepared (and usually trained) model.

    Files appear in `path` together, `lrqat.json` last; if writing fails nothing is left behind.

    Args:
        model: the model that `prepare` returned.
        tokenizer: its tokenizer, saved beside it.
        path: folder; files of the same names are replaced.
        plan: the plan the model was prepared with (its `kept` is recorded).
        base_model: {"name", "revision", "dtype"}; dtype names the type the base was stored in, and
            floating tensors go back to it where that loses nothing.
        training: provenance: data, steps, seed, rates ...
        reference: perplexity of the fake-quant model, see `lrqat.manifest`.

    Returns:
        `path`.

    Raises:
        ModelError: a trained tensor holds NaN or infinity.
        OutputError: the disk is full or the folder is not writable.
    """
    path = Path(path)
    state = _state(model, getattr(torch, str(base_model["dtype"])))
    with staged_folder(path, last=manifests.FILE_NAME) as staging:
        # One metadata entry only: safetensors writes several in random order.
        save_torch_state_dict(state, str(staging), metadata={"format": "pt"})
        _save_config(model, plan, staging)
        tokenizer.save_pretrained(staging)
        card = _CARD.format(grid=plan.grid.name, base=base_model["name"], version=lrqat.__version__)
        (staging / "README.md").write_text(card, encoding="utf-8")
        names = [file.name for file in staging.iterdir() if file.is_file()]
        manifest = {
            "format": manifests.FORMAT,
            "version": manifests.VERSION,
            "tool": {"name": "lrqat", "version": lrqat.__version__, "git_commit": git_commit()},
            "tensors": {
                name: {"grid": layer.grid.name, "shape": [layer.out_features, layer.in_features]}
                for name, layer in quantized_layers(model)
            },
            "kept": plan.kept,
            "base_model": base_model,
            "training": training or {},
            **({"reference": reference} if reference else {}),
            "files": manifests.describe_files(staging, names),
        }
        write_json(staging / manifests.FILE_NAME, manifest)
    return path


def quantization_config(plan: SurgeryPlan) -> dict[str, Any]:
    """The `quantization_config` of config.json, as compressed-tensors defines it."""
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": _weight_arguments(plan.grid),
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": sorted(plan.kept),
        "kv_cache_scheme": None,
    }


def git_commit() -> str | None:
    """The commit of this source tree, or None outside a git checkout."""
    root = Path(lrqat.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() or None if result.returncode == 0 else None


def _weight_arguments(grid: Grid) -> dict[str, Any]:
    by_group = {"strategy": "group", "group_size": grid.group_size}
    return {
        "num_bits": container_bits(grid.bits),
        "type": "int",
        "symmetric": True,
        "dynamic": False,
        **(by_group if grid.group_size else {"strategy": "channel"}),
    }


def _state(model: nn.Module, stored_dtype: torch.dtype) -> dict[str, Tensor]:
    """Tensors to write: packed projections, and the floating rest under its own names."""
    layers = dict(quantized_layers(model))
    state: dict[str, Tensor] = {}
    for name, layer in layers.items():
        _refuse_non_finite(name, layer)
        q = layer.integers().cpu().numpy()
        packed = pack_rows(q, container_bits(layer.grid.bits))
        state[name + PACKED] = torch.from_numpy(packed.astype(np.int32, copy=False))
        state[name + SCALE] = layer.stored_scale().cpu()
        state[name + SHAPE] = torch.tensor(q.shape, dtype=torch.int64)
        if layer.bias is not None:
            state[f"{name}.bias"] = _narrowest(layer.bias, stored_dtype)
    tied = _tied_head(model)
    for name, tensor in model.state_dict().items():
        if name.rpartition(".")[0] not in layers and name != tied:
            state[name] = _narrowest(tensor, stored_dtype)
    return state


def _refuse_non_finite(name: str, layer: LRQATLinear) -> None:
    for parameter, value in layer.named_parameters():
        if not torch.isfinite(value).all():
            raise ModelError(
                f"{name}.{parameter} holds NaN or infinity, so there are no integers to write; "
                "train again with lower rates"
            )


def _tied_head(model: Any) -> str | None:
    """Name of the head's weight if it is the embedding's, which is stored once."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or embedding is None or head.weight is not embedding.weight:
        return None
    return next(f"{name}.weight" for name, module in model.named_modules() if module is head)


def _narrowest(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in the type its base model stored it in, if every value survives; else float32."""
    wide = tensor.detach().cpu().float()
    narrow = wide.to(dtype)
    return (narrow if torch.equal(narrow.float(), wide) else wide).contiguous()


def _save_config(model: Any, plan: SurgeryPlan, folder: Path) -> None:
    config = copy.deepcopy(model.config)
    # float32, so that from_pretrained without arguments loses no bit of a weight or a scale.
    config.dtype = torch.float32
    config.architectures = [type(model).__name__]  # unset on a model made from a configuration
    config.quantization_config = quantization_config(plan)
    config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
