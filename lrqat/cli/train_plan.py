"""The plan of a training run as a table: what goes on which grid, what it weighs, and why.

Weights that differ by the number of their layer alone share a line, and so do equal reasons;
`--verbose` has a line for every weight.
"""

from collections import defaultdict
from collections.abc import Callable

from exporters.planning import any_layer
from lrqat.cli.command import Output
from lrqat.cli.gguf_size import GgufSize
from lrqat.doctor.subject import subject_of_plan
from lrqat.doctor.verdict import judge, one_line, remarks
from lrqat.layers.methods import METHODS
from lrqat.models.surgery import SurgeryPlan, Target
from lrqat.training.config import TrainConfig
from lrqat.training.disk import free_at
from lrqat.training.phases import RunMemory
from lrqat.training.plan import TrainingPlan

_COLUMNS = ("weights", "count", "shape", "grid", "bits per weight", "bytes")


def show_plan(
    out: Output,
    plan: TrainingPlan,
    config: TrainConfig,
    size: GgufSize | None,
    *,
    verbose: bool = False,
) -> None:
    """Print what `plan` will do.

    Args:
        out: where.
        plan: of a run.
        config: its settings.
        size: of the GGUF file; None: there will be none.
        verbose: name every weight.
    """
    show_grids(out, plan.surgery, verbose=verbose)
    if size:
        out.say(size.line())
    show_where_it_runs(out, plan.surgery)
    where = f"{str(plan.dtype).removeprefix('torch.')} on {plan.device}"
    out.say(f"{_trained(plan, config)}, {where}")
    _show_memory(out, plan.memory)
    free = free_at(config.output) / 1e9
    out.say(f"writes about {plan.disk / 1e6:,.1f} MB to {config.output}, with {free:,.1f} GB free")
    for warning in plan.warnings:
        out.warn(warning)


def show_where_it_runs(out: Output, surgery: SurgeryPlan) -> None:
    """Print the verdict of `lrqat doctor` on the grids of a plan."""
    subject = subject_of_plan(surgery.grid.name, surgery)
    out.say(one_line(judge(subject)))
    for remark in remarks(subject):
        out.warn(remark)


def _show_memory(out: Output, memory: RunMemory) -> None:
    phases = ", ".join(f"{name} {_mib(size)}" for name, size in memory.with_libraries().items())
    said = f", {_mib(memory.libraries)} of which is the process" if memory.libraries else ""
    said += f", and {_mib(memory.host)} beside the GPU to load the model" if memory.host else ""
    out.say(f"estimated peak memory: {_mib(memory.total)}{said} ({phases})")
    if "training" in memory.phases:
        parts = {name: size for name, size in vars(memory.step).items() if size >= 2**20}
        said = ", ".join(f"{name} {_mib(size)}" for name, size in parts.items())
        out.say(f"a step, without what the allocator loses: {_mib(memory.step.total)} ({said})")


def _trained(plan: TrainingPlan, config: TrainConfig) -> str:
    method = METHODS[config.method]
    if not method.trains:
        return "nothing is trained: weights are rounded to nearest"
    rank = f" (rank {config.rank})" if method.low_rank else ""
    norms = " and the norms" if config.norms_after_blocks else ""
    return f"{plan.trainable:,} trainable parameters{rank}{norms}"


def show_grids(out: Output, surgery: SurgeryPlan, *, verbose: bool = False) -> None:
    """Print which weights go on which grid, and what does not do as it was asked."""
    name_of = str if verbose else any_layer
    out.table("", _COLUMNS, _rows(surgery, name_of))
    for line in [*_moved(surgery, name_of), *_kept(surgery, name_of)]:
        out.say(line)


def _rows(surgery: SurgeryPlan, name_of: Callable[[str], str]) -> list[tuple[str, ...]]:
    alike: dict[tuple[str, Target], int] = defaultdict(int)
    for name in sorted(surgery.quantized, key=_place_of(surgery, name_of)):
        target = surgery.quantized[name]
        alike[name_of(name), target] += target.count
    rows = [
        (
            f"{name} (and {target.tied_to})" if target.tied_to else name,
            f"{count}",
            " x ".join(map(str, target.shape)),
            target.grid.name,
            f"{target.bits_per_weight:.4g}",
            f"{count * target.nbytes // target.count:,}",
        )
        for (name, target), count in alike.items()
    ]
    total = sum(target.nbytes for target in surgery.quantized.values())
    matrices = sum(target.count for target in surgery.quantized.values())
    mean = f"{surgery.bits_per_weight:.4g}"
    return [*rows, ("all on a grid", f"{matrices}", "", "", mean, f"{total:,}")]


def _place_of(
    surgery: SurgeryPlan, name_of: Callable[[str], str]
) -> Callable[[str], tuple[int, float]]:
    """The order of lines: kinds as the model has them, the smallest grid of each first."""
    kinds = list(dict.fromkeys(map(name_of, surgery.quantized)))
    bits = {name: target.bits_per_weight for name, target in surgery.quantized.items()}
    return lambda name: (kinds.index(name_of(name)), bits[name])


def _moved(surgery: SurgeryPlan, name_of: Callable[[str], str]) -> list[str]:
    """What did not fit the grid that was asked for: a line for each width and grid."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name, target in surgery.quantized.items():
        if target.asked:
            reason = target.asked.refuses(target.shape[1])
            alike[f"on {target.grid.name}, as {reason}"].append(name)
    return [f"{_named(names, name_of)}: {reason}" for reason, names in alike.items()]


def _kept(surgery: SurgeryPlan, name_of: Callable[[str], str]) -> list[str]:
    alike: dict[str, list[str]] = defaultdict(list)
    for name, reason in surgery.kept.items():
        alike[reason].append(name)
    return [
        f"stays unquantized: {_named(names, name_of)} ({reason})" for reason, names in alike.items()
    ]


def _named(names: list[str], name_of: Callable[[str], str]) -> str:
    """The patterns of some modules, and how many modules they are."""
    patterns = list(dict.fromkeys(map(name_of, names)))
    counted = f"{len(names)} weights: " if len(names) > len(patterns) else ""
    return counted + ", ".join(patterns)


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"
