"""A PEFT adapter (LoRA), merged into the weights that it was trained on.

    W + s B A        s = alpha / r, or alpha / sqrt(r) of rank-stabilised LoRA

    adapter_config.json          r, lora_alpha, use_rslora, rank_pattern, alpha_pattern ...
    adapter_model.safetensors    base_model.model.MODULE.lora_A.weight (r, in)
                                 base_model.model.MODULE.lora_B.weight (out, r)

The product is added in float32 and the sum rounded once to the weight's type, before anything is
frozen. What is not such a sum (DoRA, biases, whole modules, embeddings, starts that changed the
base) is refused. Source: peft, tuners/lora/layer.py `get_delta_weight`, utils/other.py
`get_pattern_key`.
"""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from lrqat.errors import ModelError
from lrqat.foreign_files import read_json, refuse_irregular
from lrqat.models.tying import is_tied

_CONFIG, _WEIGHTS, _PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
_NAME = re.compile(r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight")
_PLAIN = re.compile(r"[\w.]+")
_INSTEAD = (
    "merge it with peft (merge_and_unload, save_pretrained) and give the merged folder to --model"
)
# Settings that make an adapter more than a sum, and what they are.
_REFUSED = {
    "use_dora": "DoRA, which scales columns as well",
    "lora_bias": "biases of its own",
    "fan_in_fan_out": "weights that are stored transposed",
    "modules_to_save": "whole modules beside it",
    "layer_replication": "layers that are repeated",
    "trainable_token_indices": "trained tokens",
    "target_parameters": "parameters that are no module's weight",
    "alora_invocation_tokens": "an adapter that acts after some tokens alone",
    "arrow_config": "a router between adapters",
}
# Starts that take something off the base's weights.
_CHANGES_BASE = ("pissa", "olora", "loftq", "corda", "eva_residual")


@dataclass(frozen=True)
class Adapter:
    """An adapter that is a sum.

    Attributes:
        folder: where it is.
        products: module -> A (r, in), B (out, r) and s.
    """

    folder: Path
    products: dict[str, tuple[Tensor, Tensor, float]]

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
        _refuse_more_than_a_sum(folder, config)
        pairs = _pairs(folder, _tensors(folder))
        products = {name: (a, b, _scale(folder, config, name, a)) for name, (a, b) in pairs.items()}
        return cls(folder, products)

    def check(self, model: Any) -> None:
        """Look whether the adapter is one of `model`, which may be on the meta device.

        Raises:
            ModelError: a module that the model does not have, or of another shape; a tied one.
        """
        modules = dict(model.named_modules())
        for name, (a, b, _) in self.products.items():
            weight = getattr(modules.get(name), "weight", None)
            if not isinstance(modules.get(name), nn.Linear) or not isinstance(weight, Tensor):
                raise ModelError(
                    f"{self.folder} adapts {name:.80}, which is no linear layer of this "
                    f"{type(model).__name__}; give the model that it was trained on, or {_INSTEAD}"
                )
            if weight.shape != (b.shape[0], a.shape[1]):
                raise ModelError(
                    f"{self.folder} adapts {name} with the shape {(b.shape[0], a.shape[1])}, and "
                    f"the model's is {tuple(weight.shape)}; give the model that it was trained on"
                )
            if modules[name] is model.get_output_embeddings() and is_tied(model):
                raise ModelError(f"{self.folder} adapts {name}, which is the embedding; {_INSTEAD}")

    @torch.no_grad()
    def merge(self, model: Any) -> None:
        """Add the products to the weights of `model`, on whatever device. Raises as `check`."""
        self.check(model)
        for name, (a, b, scale) in self.products.items():
            weight = model.get_submodule(name).weight
            a, b = (part.to(weight.device, torch.float32) for part in (a, b))
            weight.copy_(weight.float() + scale * (b @ a))


def _refuse_more_than_a_sum(folder: Path, config: dict[str, Any]) -> None:
    kind, bias = config.get("peft_type"), config.get("bias", "none")
    start = str(config.get("init_lora_weights"))
    found = [what for key, what in _REFUSED.items() if config.get(key)]
    if kind != "LORA":
        found = [f"a {kind!r:.40} adapter, and only LoRA is a sum"]
    if bias != "none":
        found.append(f"biases (bias = {bias!r:.40})")
    if start.lower().startswith(_CHANGES_BASE):
        found.append(f"a start that changed the base model ({start:.40})")
    if found:
        raise ModelError(f"{folder} cannot be merged here: it has {found[0]}; {_INSTEAD}")


def _tensors(folder: Path) -> dict[str, Tensor]:
    if not (folder / _WEIGHTS).is_file():
        pickled = f" ({_PICKLE} is a pickle, which is not opened)"
        there = pickled if (folder / _PICKLE).is_file() else ""
        raise ModelError(f"{folder} has no {_WEIGHTS}{there}; save the adapter with a recent peft")
    try:
        return load_file(folder / _WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder / _WEIGHTS} is damaged: {error}; use an intact copy") from None


def _pairs(folder: Path, tensors: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Module -> A and B."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name)
        if match is None or tensor.dim() != 2 or not torch.isfinite(tensor).all():
            reason = "is no matrix of a linear layer's LoRA" if match is None else "is damaged"
            raise ModelError(f"{folder} cannot be merged here: {name:.80} {reason}; {_INSTEAD}")
        found.setdefault(match[1], {})[match[2]] = tensor
    for module, pair in found.items():
        if pair.keys() != {"A", "B"} or pair["A"].shape[0] != pair["B"].shape[1]:
            raise ModelError(
                f"{folder} has no A and B of one rank for {module:.80}; use an intact copy"
            )
    if not found:
        raise ModelError(f"{folder} holds no LoRA; give the folder that peft saved")
    return {module: (pair["A"], pair["B"]) for module, pair in found.items()}


def _scale(folder: Path, config: dict[str, Any], module: str, a: Tensor) -> float:
    """What the product of a module is multiplied with: alpha / r, or alpha / sqrt(r)."""
    rank = _of_module(folder, config.get("rank_pattern"), module, config.get("r"))
    alpha = _of_module(folder, config.get("alpha_pattern"), module, config.get("lora_alpha"))
    numbers = all(type(n) in (int, float) and 0 < n < 1e9 for n in (rank, alpha))
    if not numbers or rank != len(a):
        raise ModelError(
            f"{folder} says rank {rank!r:.20} and alpha {alpha!r:.20} of {module}, whose matrices "
            f"have rank {len(a)}; use an intact copy"
        )
    return float(alpha / (math.sqrt(rank) if config.get("use_rslora") else rank))


def _of_module(folder: Path, patterns: Any, module: str, otherwise: Any) -> Any:
    """The value of the first name that a module's name is or ends with; others are expressions."""
    for name, value in patterns.items() if isinstance(patterns, dict) else ():
        plain = name.removeprefix("^")
        if not _PLAIN.fullmatch(plain):
            raise ModelError(
                f"{folder} cannot be merged here: {name!r:.80} is an expression and no name of "
                f"modules; {_INSTEAD}"
            )
        if module == plain or (plain == name and module.endswith(f".{name}")):
            return value
    return otherwise
