"""The options of a training run: one for every setting, and what a run file says beside them."""

import argparse
import dataclasses
import typing
from typing import Any

from lrqat.errors import UserError
from lrqat.grids.grid import grid_families
from lrqat.settings import flag, groups_of
from lrqat.training.config import TrainConfig
from lrqat.training.run_file import kinds, read_run


def add_settings(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    """An option for every setting of a run that has a default, or for all; in their groups.

    What is not given is not in the result of parsing, so that a run file may say it.
    """
    hints = typing.get_type_hints(TrainConfig)
    for title, fields in groups_of(TrainConfig):
        group = parser.add_argument_group(title)
        for field in fields:
            if required or field.default is not dataclasses.MISSING:
                _add_option(group, field, hints[field.name])


def config_from(args: argparse.Namespace, **fixed: Any) -> TrainConfig:
    """The settings that `args` holds, over those of its run file; but for those that are `fixed`.

    Raises:
        UserError: a setting without a default is in neither; see `read_run` and `TrainConfig`.
    """
    run = getattr(args, "run", None)
    fields = dataclasses.fields(TrainConfig)
    given = {f.name: getattr(args, f.name) for f in fields if hasattr(args, f.name)}
    plain = {n: tuple(v) if isinstance(v, list) else v for n, v in given.items()}
    values = (read_run(run) if run else {}) | plain | fixed
    missing = [
        flag(f.name) for f in fields if f.default is dataclasses.MISSING and f.name not in values
    ]
    if missing:
        raise UserError(
            f"a run needs {', '.join(missing)}: give {'it' if len(missing) == 1 else 'them'} as an "
            "option, or in a run file (docs/run-files.md)"
        )
    return TrainConfig(**values)


def _add_option(group: Any, field: dataclasses.Field[Any], hint: Any) -> None:
    text = field.metadata["help"]
    if field.name == "grid":
        text += "; " + "; ".join(grid_families())
    options: dict[str, Any] = {"dest": field.name, "default": argparse.SUPPRESS}
    if field.default is dataclasses.MISSING:
        if any(typing.get_origin(kind) is tuple for kind in kinds(hint)):
            options.update(nargs="+", action="extend", metavar="SOURCE")
    elif hint is bool:
        options["action"] = argparse.BooleanOptionalAction
    elif isinstance(field.default, tuple):
        options.update(action="append", metavar="PATTERN")
    else:
        options["type"] = kinds(hint)[0]
        if field.default is not None:
            text += f" (default: {field.default})"
    group.add_argument(flag(field.name), help=text, **options)
