"""compressed-tensors' `pack-quantized` format: what of a plan it holds, and how it is told."""

from typing import Any

from lrqat.checkpoint.weight_kinds import WeightKind
from lrqat.grids.grid import Grid
from lrqat.grids.packing import bits_in_checkpoint
from lrqat.models.surgery import SurgeryPlan


def loads_with_transformers(plan: SurgeryPlan) -> bool:
    """Whether compressed-tensors, as transformers uses it, loads everything on a grid exactly.

    It has no minima, and transformers refuses the packed zero-points that it writes itself. An
    embedding is given to it as the floating-point weight that its integers mean.
    """
    return all(
        t.kind == WeightKind.EMBEDDING or (t.kind == WeightKind.LINEAR and t.grid.symmetric)
        for t in plan.quantized.values()
    )


def quantization_config(plan: SurgeryPlan) -> dict[str, Any]:
    """The `quantization_config` of config.json, as compressed-tensors defines it."""
    by_grid: dict[Grid, list[str]] = {}
    for name, target in plan.quantized.items():
        if target.kind != WeightKind.EMBEDDING:
            by_grid.setdefault(target.grid, []).append(name)
    heads = [target.tied_to for target in plan.quantized.values() if target.tied_to]
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {
            f"group_{i}": {
                # With one grid, the layer type: runtimes that fuse projections expect it.
                "targets": ["Linear"] if len(by_grid) == 1 else names,
                "weights": _weight_arguments(grid),
                "input_activations": None,
                "output_activations": None,
            }
            for i, (grid, names) in enumerate(by_grid.items())
        },
        "ignore": sorted({*plan.ignored, *heads}),
        "kv_cache_scheme": None,
    }


def _weight_arguments(grid: Grid) -> dict[str, Any]:
    by_group = {"strategy": "group", "group_size": grid.group_size}
    return {
        "num_bits": bits_in_checkpoint(grid),
        "type": "int",
        "symmetric": True,
        "dynamic": False,
        **(by_group if grid.group_size else {"strategy": "channel"}),
    }
