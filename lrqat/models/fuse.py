"""Fusing: a trained model becomes integers and scales in a Hugging Face folder.

A and B disappear into the integers, so the result costs nothing at inference. The folder is in
compressed-tensors' `pack-quantized` format, which transformers reads as it is, and `lrqat.json`
(see `lrqat.checkpoint.manifest`) says the rest. The integers are written as they stand; the
library's own `compress()`, which takes floats and quantises, is not used.
"""

import copy
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn

import lrqat
from lrqat.activations.kv_cache import kv_bits, restore_kv_cache
from lrqat.activations.quantizer import describe, detach
from lrqat.atomic_files import write_json
from lrqat.cards.card import model_card
from lrqat.cards.checkpoint import describe_checkpoint
from lrqat.checkpoint import manifest as manifests
from lrqat.checkpoint.publishing import published
from lrqat.checkpoint.reader import ACTIVATION_FILE, PACKED, SHAPE, Checkpoint
from lrqat.checkpoint.roles import CARD
from lrqat.checkpoint.stored_scales import PARTS
from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.errors import ModelError
from lrqat.grids.grid import Float8Scale, Grid, TwoLevelScale
from lrqat.grids.packing import pack_grid
from lrqat.grids.quantize import dequantize
from lrqat.grids.scale_codecs import tensor_and_groups, two_levels
from lrqat.layers.norms import settle_norms
from lrqat.layers.weight import QuantizedWeight
from lrqat.models.preparation import quantized_layers
from lrqat.models.standard_format import loads_with_transformers, quantization_config
from lrqat.models.surgery import SurgeryPlan, Target
from lrqat.models.tying import is_tied, settle_tying
from lrqat.models.weight_misfits import refuse_not_finite

# The weights of a folder that transformers could not load rightly have a name it does not look for.
_OWN_FILES = "lrqat{suffix}.safetensors"
_NONE: Mapping[str, bytes] = MappingProxyType({})
_EXTRA_FILE = "lrqat-scales.safetensors"


def fuse(
    model: Any,
    tokenizer: Any,
    path: str | Path,
    *,
    plan: SurgeryPlan,
    base_model: dict[str, Any],
    training: dict[str, Any] | None = None,
    reference: dict[str, Any] | None = None,
    licenses: Mapping[str, bytes] = _NONE,
    beside: Callable[[Path], None] = lambda folder: None,
) -> Path:
    """Write the fused checkpoint of a prepared (and usually trained) model.

    The checkpoint appears in `path` whole, in the place of an earlier one, whose files it does not
    leave behind; whatever else lies there stays (see `lrqat.checkpoint.publishing`). If writing
    fails the earlier one is as it was.

    Args:
        model: the model that `prepare` returned.
        tokenizer: its tokenizer, saved beside it.
        path: folder.
        plan: the plan the model was prepared with (its `kept` is recorded).
        base_model: {"name", "revision", "dtype"}; dtype names the type the base was stored in, and
            floating tensors go back to it where that loses nothing.
        training: provenance: data, steps, seed, rates ... Local paths in it are cut to names.
        reference: perplexity of the fake-quant model, see `lrqat.checkpoint.manifest`.
        licenses: texts that go with the model, of `lrqat.models.license_files`.
        beside: puts into the folder that it is given what appears with the checkpoint and is no
            part of it: lrqat.json does not list it.

    Returns:
        `path`.

    Raises:
        ModelError: a tensor holds NaN or infinity.
        OutputError: the disk is full, the folder is not writable, or another process writes there.
    """
    path = Path(path)
    activations, activation_tensors = _activations(model)
    settle_norms(model)
    state, extra = _state(model, plan, getattr(torch, str(base_model["dtype"])))
    refuse_not_finite(str(base_model["name"]), state.items())
    standard = loads_with_transformers(plan)
    pattern = "model{suffix}.safetensors" if standard else _OWN_FILES
    with published(path) as staging:
        # One metadata entry only: safetensors writes several in random order.
        save_torch_state_dict(
            state, str(staging), filename_pattern=pattern, metadata={"format": "pt"}
        )
        if extra:
            save_file(extra, staging / _EXTRA_FILE, metadata={"format": "pt"})
        if activation_tensors:
            save_file(activation_tensors, staging / ACTIVATION_FILE, metadata={"format": "pt"})
        save_settings(model, tokenizer, plan, staging, licenses)
        tensors = {n: (w.grid, (w.out_features, w.in_features)) for n, w in quantized_layers(model)}
        manifest = manifest_of(tensors, plan, base_model, training, reference, activations)
        write_manifest(staging, manifest)
        beside(staging)
    return path


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the card and lrqat.json of a folder whose other files are there.

    Args:
        folder: of the checkpoint.
        manifest: of `manifest_of`; gets the list of files.
    """
    manifest["files"] = manifests.describe_files(folder, manifests.names_in(folder))
    made = describe_checkpoint(Checkpoint(folder, manifest, {}))
    (folder / CARD).write_text(model_card(manifest, [made]), encoding="utf-8")
    manifest["files"] |= manifests.describe_files(folder, [CARD])
    write_json(folder / manifests.FILE_NAME, manifest)


def manifest_of(
    tensors: Mapping[str, tuple[Grid, tuple[int, int]]],
    plan: SurgeryPlan,
    base_model: dict[str, Any],
    training: dict[str, Any] | None,
    reference: dict[str, Any] | None,
    activations: dict[str, Any],
) -> dict[str, Any]:
    """lrqat.json but for its list of files.

    Args:
        tensors: module name -> grid and (out, in), of every expert for itself.
        plan: as `fuse`, like the next three.
        base_model: of `fuse`.
        training: of `fuse`.
        reference: of `fuse`.
        activations: what was rounded beside the weights; empty: nothing.
    """
    return {
        "format": manifests.FORMAT,
        "version": manifests.VERSION,
        "tool": {"name": "lrqat", "version": lrqat.__version__, "git_commit": git_commit()},
        "tensors": {
            name: {
                "grid": grid.name,
                "shape": list(shape),
                "kind": _target_of(plan, name).kind,
            }
            for name, (grid, shape) in tensors.items()
        },
        "kept": plan.kept,
        **({"activations": activations} if activations else {}),
        "base_model": manifests.names_only(base_model),
        "training": manifests.names_only(training or {}),
        **({"reference": reference} if reference else {}),
    }


def _activations(model: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What is rounded beside the weights; the quantisers are taken off the model."""
    described, tensors = describe(model)
    detach(model)
    bits = kv_bits(model)
    if bits is not None:
        restore_kv_cache(model)
    found = {} if not described["modules"] and bits is None else described | {"kv_bits": bits}
    return found, tensors


def _target_of(plan: SurgeryPlan, name: str) -> Target:
    """What was planned for a weight; an expert's is that of its stack."""
    return plan.quantized.get(name) or plan.quantized[name.rpartition(".")[0]]


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


def _state(
    model: nn.Module, plan: SurgeryPlan, stored_dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors to write: what transformers knows of, and what only lrqat does.

    The first holds packed weights, and the floating rest under its own names. Where transformers
    loads it, the integers of an embedding are in the second, and what they mean in the first.
    """
    state: dict[str, Tensor] = {}
    extra: dict[str, Tensor] = {}
    standard = loads_with_transformers(plan)
    trained: set[str] = set()
    for name, layer in quantized_layers(model):
        _refuse_non_finite(name, layer)
        known, own = _scale_tensors(layer)
        packed = _packed(name, layer) | {name + PARTS[part]: t for part, t in known.items()}
        if standard and _target_of(plan, name).kind == WeightKind.EMBEDDING:
            extra |= packed
            state[f"{name}.weight"] = dequantize(layer.integers(), layer.stored()).cpu()
        else:
            state |= packed
        extra |= {name + PARTS[part]: tensor for part, tensor in own.items()}
        bias: Tensor | None = getattr(layer, "bias", None)
        if bias is not None:
            state[f"{name}.bias"] = _narrowest(bias, stored_dtype)
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, QuantizedWeight):
            trained |= {f"{name}.{own}" for own in module.state_dict()}
    tied = _tied_head(model)
    for name, tensor in model.state_dict().items():
        if name not in trained and name != tied:
            state[name] = _narrowest(tensor, stored_dtype)
    return state, extra


def _packed(name: str, layer: QuantizedWeight) -> dict[str, Tensor]:
    """Integers and shape of a weight, by their names in the file."""
    q = layer.integers().cpu().numpy()
    return {
        name + PACKED: torch.from_numpy(np.ascontiguousarray(pack_grid(q, layer.grid))),
        name + SHAPE: torch.tensor(q.shape, dtype=torch.int64),
    }


def _scale_tensors(layer: QuantizedWeight) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Stored scales by part: those of compressed-tensors, and those of our own."""
    with torch.no_grad():
        stored = layer.stored()
    known, own = {"scale": stored.scale.cpu()}, {}
    if stored.zero_point is not None:
        own["zero_point"] = stored.zero_point.to(torch.int8).cpu()
    if stored.minimum is not None:
        own["minimum"] = stored.minimum.cpu()
    if isinstance(layer.grid.scale, Float8Scale):
        tensor_scale, _ = tensor_and_groups(stored.scale)
        own["tensor_scale"] = tensor_scale.repeat(layer.out_features, 1).cpu()
    size = layer.in_features // stored.scale.shape[1]
    for part, codec in (("scale", layer.grid.scale), ("minimum", layer.grid.minimum)):
        if isinstance(codec, TwoLevelScale):
            values = getattr(stored, part)
            signed = part == "scale" and layer.grid.signed_scale
            top, sub = two_levels(values, codec, signed=signed, group_size=size)
            own[f"super_{part}"], own[f"sub_{part}"] = top.cpu(), sub.to(torch.int8).cpu()
    return known, own


def _refuse_non_finite(name: str, layer: QuantizedWeight) -> None:
    for parameter, value in layer.named_parameters():
        if not torch.isfinite(value).all():
            raise ModelError(
                f"{name}.{parameter} holds NaN or infinity, so there are no integers to write; "
                "train again with lower rates"
            )


def _tied_head(model: Any) -> str | None:
    """Name of the head's weight if it is the embedding's, which is stored once."""
    names = {module: f"{name}.weight" for name, module in model.named_modules()}
    return names[model.get_output_embeddings()] if is_tied(model) else None


def _narrowest(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`tensor` in a type no wider, that of its base model, if every value survives; or float32."""
    wide = tensor.detach().cpu().float()
    narrow = wide.to(dtype)
    exact = dtype.itemsize <= 4 and torch.equal(narrow.float(), wide)
    return (narrow if exact else wide).contiguous()


def save_settings(
    model: Any,
    tokenizer: Any,
    plan: SurgeryPlan,
    folder: Path,
    licenses: Mapping[str, bytes] = _NONE,
) -> None:
    """Write what a checkpoint has besides weights: configuration, tokenizer, licences."""
    config = copy.deepcopy(model.config)
    settle_tying(model, config)
    # float32, so that from_pretrained without arguments loses no bit of a weight or a scale.
    config.dtype = torch.float32
    config.architectures = [type(model).__name__]  # unset on a model made from a configuration
    if loads_with_transformers(plan):
        config.quantization_config = quantization_config(plan)
    config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, text in licenses.items():
        (folder / name).write_bytes(text)
