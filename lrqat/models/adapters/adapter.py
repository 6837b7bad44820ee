"""The folder of a PEFT adapter.

    adapter_config.json          r, lora_alpha, use_rslora, rank_pattern, alpha_pattern ...
    adapter_model.safetensors    base_model.model.MODULE.lora_A.weight (r, in)
                                 base_model.model.MODULE.lora_B.weight (out, r)
                                 base_model.model.MODULE.lora_magnitude_vector (out,), of DoRA
                                 base_model.model.PARAMETER, of modules_to_save and of embeddings

What cannot be read so (biases, adapted embeddings, starts that changed the base ...) is refused.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lrqat.errors import ModelError
from lrqat.foreign_files import read_json, refuse_irregular
from lrqat.models.adapters.remedy import INSTEAD
from lrqat.models.adapters.scales import scale_of

_CONFIG, _WEIGHTS, _PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_LOW_RANK = re.compile(
    r"base_model\.model\.(.+)\.lora_(A|B|magnitude_vector)(?:\.default)?(?:\.weight)?"
)
_WHOLE = re.compile(
    r"base_model\.model\.((?:(?!lora_)\w+\.)+?)(?:modules_to_save\.(?:default\.)?)?(weight|bias)"
)
# Settings that make an adapter more than what is read here, and what they are.
_REFUSED = {
    "lora_bias": "biases of its own",
    "fan_in_fan_out": "weights that are stored transposed",
    "layer_replication": "layers that are repeated",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "parameters that are no module's weight",
    "alora_invocation_tokens": "an adapter that acts after some tokens alone",
    "arrow_config": "a router between adapters",
}
# Starts that take something off the base's weights.
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "eva_residual")


@dataclass(frozen=True)
class LowRank:
    """What changes the weight of a linear layer.

    Attributes:
        a: A, (r, in).
        b: B, (out, r).
        scale: of their product.
        magnitude: of DoRA, the norms that the rows of the sum get, (out,); None: LoRA.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None


@dataclass(frozen=True)
class Adapter:
    """An adapter.

    Attributes:
        folder: where it is.
        low_rank: by module.
        whole: parameters that take the place of the model's, by name.
    """

    folder: Path
    low_rank: dict[str, LowRank]
    whole: dict[str, Tensor]

    @property
    def is_sum(self) -> bool:
        """Whether it adds to weights, and does nothing else."""
        return not self.whole and all(each.magnitude is None for each in self.low_rank.values())

    @classmethod
    def open(cls, name: str | Path) -> "Adapter":
        """Read an adapter's folder.

        Raises:
            ModelError: it is none, is damaged, or cannot be merged.
        """
        folder = Path(name)
        if not (folder / _CONFIG).is_file():
            raise ModelError(f"--adapter {name} has no {_CONFIG}; give the folder that peft saved")
        refuse_irregular(folder, ModelError)
        config = read_json(folder / _CONFIG)
        _refuse_other_kinds(folder, config)
        parts, whole = _sorted(folder, _tensors(folder))
        low_rank = {
            module: LowRank(
                part["A"],
                part["B"],
                scale_of(folder, config, module, part["A"]),
                part.get("magnitude_vector"),
            )
            for module, part in parts.items()
        }
        return cls(folder, low_rank, whole)


def _refuse_other_kinds(folder: Path, config: dict[str, Any]) -> None:
    kind, bias = config.get("peft_type"), config.get("bias", "none")
    start = str(config.get("init_lora_weights"))
    found = [what for key, what in _REFUSED.items() if config.get(key)]
    if kind != "LORA":
        found = [f"a {kind!r:.40} adapter, and only LoRA and DoRA are read"]
    if bias != "none":
        found.append(f"biases (bias = {bias!r:.40})")
    if start.lower().startswith(_CHANGES_BASE):
        found.append(f"a start that changed the base model ({start:.40})")
    if found:
        raise ModelError(f"{folder} cannot be merged here: it has {found[0]}; {INSTEAD}")


def _tensors(folder: Path) -> dict[str, Tensor]:
    if not (folder / _WEIGHTS).is_file():
        pickled = f" ({_PICKLE} is a pickle, which is not opened)"
        there = pickled if (folder / _PICKLE).is_file() else ""
        raise ModelError(f"{folder} has no {_WEIGHTS}{there}; save the adapter with a recent peft")
    try:
        return load_file(folder / _WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder / _WEIGHTS} is damaged: {error}; use an intact copy") from None


def _sorted(
    folder: Path, tensors: dict[str, Tensor]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """What is of low rank, by module and part, and whole parameters by name."""
    low_rank: dict[str, dict[str, Tensor]] = {}
    whole = {}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise ModelError(f"{folder} cannot be merged here: {name:.80} is damaged; {INSTEAD}")
        if part := _LOW_RANK.fullmatch(name):
            low_rank.setdefault(part[1], {})[part[2]] = tensor
        elif parameter := _WHOLE.fullmatch(name):
            whole[parameter[1] + parameter[2]] = tensor
        else:
            raise ModelError(
                f"{folder} cannot be merged here: {name:.80} is no part of a linear layer's LoRA "
                f"and no parameter; {INSTEAD}"
            )
    for module, parts in low_rank.items():
        _refuse_misfits(folder, module, parts)
    if not low_rank and not whole:
        raise ModelError(f"{folder} holds no LoRA; give the folder that peft saved")
    return low_rank, whole


def _refuse_misfits(folder: Path, module: str, parts: dict[str, Tensor]) -> None:
    a, b = (parts.get(part, torch.empty(0)) for part in "AB")
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1]:
        what = "A and B of one rank for"
    elif parts.get("magnitude_vector", b[:, 0]).shape != b.shape[:1]:
        what = "a magnitude for each row of"
    else:
        return
    raise ModelError(f"{folder} has no {what} {module:.80}; use an intact copy")
