"""Train a model on a quantization grid (LR-QAT) and write the fused checkpoint.

A run may stand in a file: `lrqat train run.yaml`, with options that count more than the file.
"""

import argparse
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lrqat.cli import command
from lrqat.cli.next_steps import after_training
from lrqat.cli.train_options import add_settings, config_from
from lrqat.layers.methods import METHODS
from lrqat.training.config import TrainConfig
from lrqat.training.run_file import write_run

if TYPE_CHECKING:
    from lrqat.cli.gguf_size import GgufSize
    from lrqat.training.plan import TrainingPlan
    from lrqat.training.report import TrainReport

_FIRST = ("model", "data", "grid", "output", "steps")
_REMEDY = "Try a lower --learning-rate, more --steps, or --teacher self"


def build_parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__ or "", essentials=_FIRST)
    said = "settings of the run, in place of options or beside them"
    parser.add_argument("run", nargs="?", metavar="RUN.yaml", help=said)
    add_settings(parser, required=True)
    parser.add_argument("--resume", metavar="auto|STATE", help="continue from a saved state")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--verbose", action="store_true", help="a line of the plan for each weight")
    parser.add_argument("--save-recipe", metavar="FILE", help="write the plan's grids as a recipe")
    parser.add_argument("--save-config", metavar="FILE", help="write all settings as a run file")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return parser


def _change(report: "TrainReport") -> str:
    if report.kl_after is not None and report.kl_rounded is not None:
        return f"KL {report.kl_after:.5f} against {report.kl_rounded:.5f}"
    rounded = report.rounded.perplexity if report.rounded else float("nan")
    return f"perplexity {report.after.perplexity:.4f} against {rounded:.4f}"


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = command.Output(args.json)
    config = config_from(args)
    from lrqat.cli.gguf_size import find_gguf_size, gguf_bytes
    from lrqat.cli.train_plan import show_plan
    from lrqat.training.plan import plan_training
    from lrqat.training.states.resume import refuse_overwritten_inputs

    refuse_overwritten_inputs(config, args.overwrite, args.resume)
    plan = plan_training(config)
    size = find_gguf_size(config, plan.surgery) if _is_first() else None
    if _is_first():
        show_plan(out, plan, config, size, verbose=args.verbose)
        _save(out, args, config, plan)
    if args.dry_run:
        if _is_first():
            _say_the_rest(out, config, plan, size, args.save_config)
        return command.OK
    from lrqat.training.run import train

    report = train(
        config, overwrite=args.overwrite, resume=args.resume, say=out.say, file_bytes=gguf_bytes
    )
    if _is_first():
        _show_report(out, report)
        out.next(after_training(report.output, in_gguf=size is not None))
        out.result(report.to_json())
    return command.OK


def _say_the_rest(
    out: command.Output,
    config: TrainConfig,
    plan: "TrainingPlan",
    size: "GgufSize | None",
    run_file: str | None,
) -> None:
    """What a run says when it begins, and a plan at its end; its file may have been written."""
    from lrqat.training.plan import estimate_duration

    seconds = {}
    if METHODS[config.method].trains:
        duration = estimate_duration(config, plan)
        out.say(duration.line())
        seconds = duration.parts
    saved = f"lrqat train {shlex.quote(run_file)}" if run_file else "the same without --dry-run"
    out.next(saved)
    out.result(plan.to_json() | {"seconds": seconds, "gguf": size and size.to_json()})


def _save(
    out: command.Output, args: argparse.Namespace, config: TrainConfig, plan: "TrainingPlan"
) -> None:
    """Write what the user wants to have in files."""
    if args.save_recipe:
        from lrqat.recipes.recipe_file import write_recipe
        from lrqat.training.recipes import recipe_from

        about = f"made for {Path(config.model).name}"
        recipe = recipe_from(plan.surgery, config.recipe or config.grid, about)
        write_recipe(recipe, args.save_recipe, overwrite=args.overwrite)
        out.say(f"recipe in {args.save_recipe}")
    if args.save_config:
        write_run(config, args.save_config, overwrite=args.overwrite)
        out.say(f"settings in {args.save_config}")


def _is_first() -> bool:
    """Whether this is the process that talks: torchrun gives each a rank."""
    return os.environ.get("RANK", "0") == "0"


def _done(report: "TrainReport") -> str:
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


def _show_report(out: command.Output, report: "TrainReport") -> None:
    out.say(f"{_done(report)}; fused checkpoint in {report.output}")
    if report.made_worse:
        out.warn(f"training made the model worse: {_change(report)} at round-to-nearest. {_REMEDY}")
    if report.skipped_steps:
        out.warn(f"{report.skipped_steps} steps were skipped: loss or gradients were not finite")
