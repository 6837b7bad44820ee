"""Train a model on a quantisation grid (LR-QAT) and write the fused checkpoint."""

import argparse
import dataclasses
import os
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrqat.cli import command
from lrqat.cli.gguf_size import find_gguf_size, gguf_bytes
from lrqat.cli.train_plan import show_plan
from lrqat.grids.grid import grid_families
from lrqat.layers.methods import METHODS
from lrqat.recipes.recipe_file import write_recipe
from lrqat.settings import flag, groups_of
from lrqat.training.config import TrainConfig
from lrqat.training.plan import plan_training
from lrqat.training.recipes import recipe_from
from lrqat.training.report import TrainReport
from lrqat.training.states.resume import refuse_overwritten_inputs

_REMEDY = "Try a lower --learning-rate, more --steps, or --teacher self"


def build_parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__ or "")
    add_settings(parser, required=True)
    parser.add_argument("--resume", metavar="auto|STATE", help="continue from a saved state")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--verbose", action="store_true", help="a line of the plan for each weight")
    parser.add_argument("--save-recipe", metavar="FILE", help="write the plan's grids as a recipe")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return parser


def add_settings(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """An option for every setting of a run that has a default, or for all; in their groups."""
    hints = typing.get_type_hints(TrainConfig)
    for title, fields in groups_of(TrainConfig):
        group = parser.add_argument_group(title)
        for field in fields:
            if required or field.default is not dataclasses.MISSING:
                _add_option(group, field, hints[field.name])


def _add_option(group: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    text = field.metadata["help"]
    if field.name == "grid":
        text += "; " + "; ".join(grid_families())
    options: dict[str, Any] = {"help": text, "default": field.default, "dest": field.name}
    if field.default is dataclasses.MISSING:
        options = {"help": text, "required": True, "dest": field.name}
        if _takes_several(hint):
            options.update(nargs="+", action="extend", metavar="SOURCE")
    elif hint is bool:
        options["action"] = "store_true"
    elif isinstance(field.default, tuple):
        options.update(action="append", default=[], metavar="PATTERN")
    else:
        options["type"] = _plain_type(hint)
    group.add_argument(flag(field.name), **options)


def _takes_several(hint: Any) -> bool:
    return any(typing.get_origin(part) is tuple for part in typing.get_args(hint))


def _plain_type(hint: Any) -> Any:
    """`int | None` and the like: the type that the text is converted to."""
    if isinstance(hint, types.UnionType):
        return next(part for part in typing.get_args(hint) if part is not type(None))
    return hint


def config_from(args: argparse.Namespace, **fixed: Any) -> TrainConfig:
    """The settings that `args` holds, but for those that are `fixed`."""
    names = [field.name for field in dataclasses.fields(TrainConfig) if field.name not in fixed]
    given = {name: getattr(args, name) for name in names}
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
    return TrainConfig(**values | fixed)


def _change(report: TrainReport) -> str:
    if report.kl_after is not None and report.kl_rounded is not None:
        return f"KL {report.kl_after:.5f} against {report.kl_rounded:.5f}"
    rounded = report.rounded.perplexity if report.rounded else float("nan")
    return f"perplexity {report.after.perplexity:.4f} against {rounded:.4f}"


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = command.Output(args.json)
    config = config_from(args)
    refuse_overwritten_inputs(config, args.overwrite, args.resume)
    plan = plan_training(config)
    size = find_gguf_size(config, plan.surgery) if _is_first() else None
    if _is_first():
        show_plan(out, plan, config, size, verbose=args.verbose)
    if args.save_recipe and _is_first():
        about = f"made for {Path(config.model).name}"
        recipe = recipe_from(plan.surgery, config.recipe or config.grid, about)
        write_recipe(recipe, args.save_recipe, overwrite=args.overwrite)
        out.say(f"recipe in {args.save_recipe}")
    if args.dry_run:
        out.result(plan.to_json() | {"gguf": size and size.to_json()})
        return command.OK
    from lrqat.training.run import train

    report = train(
        config, overwrite=args.overwrite, resume=args.resume, say=out.say, file_bytes=gguf_bytes
    )
    if _is_first():
        _show_report(out, report)
    return command.OK


def _is_first() -> bool:
    """Whether this is the process that talks: torchrun gives each a rank."""
    return os.environ.get("RANK", "0") == "0"


def _done(report: TrainReport) -> str:
    """What was done to the weights; of `changed` there is none where rounding comes last."""
    method = METHODS[report.method]
    if not method.trains:
        return "every weight is rounded to nearest"
    trained = f"{report.seconds:.0f} s of training"
    if not method.rounds_inside:
        return f"{trained}, then rounded to nearest"
    as_a_whole = f"{report.changed:.2%} of the integers changed; {trained}"
    if not report.blocks:
        return as_a_whole
    found = f"{report.changed_in_blocks:.1%} of the integers changed block by block"
    in_blocks = f"{found} in {report.block_seconds:.0f} s"
    return f"{in_blocks}, then {as_a_whole}" if report.seconds else in_blocks


def _show_report(out: command.Output, report: TrainReport) -> None:
    out.say(f"{_done(report)}; fused checkpoint in {report.output}")
    if report.made_worse:
        out.warn(f"training made the model worse: {_change(report)} at round-to-nearest. {_REMEDY}")
    if report.skipped_steps:
        out.warn(f"{report.skipped_steps} steps were skipped: loss or gradients were not finite")
    out.result(report.to_json())
