"""A run's folder as a part of a report: the fused checkpoint, and what was said of the training.

training-report.json      beside the checkpoint, once the run has ended
checkpoints/run.json      the settings
checkpoints/blocks/       the finished blocks
checkpoints/checkpoint-N  the last state: a run that goes on, or stopped, is told from these
"""

import math
from collections import Counter
from pathlib import Path

from exporters.provenance import provenance
from lrqat.checkpoint import manifest
from lrqat.checkpoint.publishing import REPORT, STATES
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import UserError
from lrqat.foreign_files import read_json
from lrqat.reporting.fields import Fields
from lrqat.reporting.layers import Progress, layers_of
from lrqat.reporting.material import Block, Model, Training
from lrqat.training.blocks.saved import notes_of
from lrqat.training.callbacks import history_of
from lrqat.training.states.folder import list_states, read_history
from lrqat.training.states.resume import RUN

# Settings that a reader wants to know, and how they are called.
_SETTINGS = {
    "method": "method", "stages": "stages", "steps": "steps", "block_steps": "steps of a block",
    "rank": "rank", "batch_size": "sequences a step", "sequence_length": "tokens a sequence",
    "teacher": "teacher", "seed": "seed",
}  # fmt: skip


def is_run(path: Path) -> bool:
    """A folder with a fused checkpoint, or with the states of a run that has not ended."""
    return (path / manifest.FILE_NAME).is_file() or (path / STATES / RUN).is_file()


def read_run(path: Path, base: str | None, progress: Progress) -> Model:
    """A run, or a fused checkpoint without one.

    Args:
        path: its folder.
        base: the model that it was made from, to compare weights with; None: the one that the run
            names, if it is on this machine.
        progress: wraps the iterable of weights.

    Raises:
        UserError: a file is damaged.
    """
    settings = Fields(_settings(path), str(path / STATES / RUN))
    named = settings.text("model")
    base = base or (named if named and Path(named).exists() else None)
    training = _training(path, settings)
    if not (path / manifest.FILE_NAME).is_file():
        name = Path(named).name
        return Model(str(path), "run that has not ended", base=name, training=training)
    checkpoint = Checkpoint.open(path)
    names = checkpoint.quantized_names
    files = [path / name for name in checkpoint.files if name.endswith(".safetensors")]
    of_names = checkpoint.floating_names
    stored = sum(checkpoint.stored_bytes(name) for name in (*names, *of_names))
    weights = sum(math.prod(checkpoint.shape(name)) for name in (*names, *of_names))
    reference = Fields(checkpoint.manifest.get("reference") or {}, str(path / manifest.FILE_NAME))
    return Model(
        path=str(path),
        kind="fused checkpoint",
        base=str(provenance(checkpoint).get("lrqat.base_model", "")),
        grids=_grids(checkpoint),
        bytes=sum(file.stat().st_size for file in files),
        bits_per_weight=8 * stored / max(1, weights),
        perplexity=reference.maybe("perplexity"),
        layers=layers_of(checkpoint, training, base, progress),
        training=training,
        base_path=base,
    )


def _grids(checkpoint: Checkpoint) -> dict[str, float]:
    counts: Counter[str] = Counter()
    for name in checkpoint.quantized_names:
        counts[checkpoint.grid(name).name] += math.prod(checkpoint.shape(name))
    return {grid: count / counts.total() for grid, count in counts.most_common()}


def _settings(path: Path) -> dict[str, object]:
    file = path / STATES / RUN
    return read_json(file) if file.is_file() else {}


def _training(path: Path, settings: Fields) -> Training | None:
    """What is known of the training; None of a checkpoint without a run."""
    shown = {title: settings.plain(name) for name, title in _SETTINGS.items() if name in settings}
    if (path / REPORT).is_file():
        return read_report(Fields(read_json(path / REPORT), str(path / REPORT)), shown)
    states = path / STATES
    if not states.is_dir():
        return None
    notes = Fields(notes_of(states), str(states))
    blocks = [(name, note) for name, note in notes.named() if "before" in note]
    return Training(
        finished=(path / manifest.FILE_NAME).is_file(),
        settings=shown,
        history=_last_history(states),
        blocks=tuple(_block(name, note) for name, note in blocks),
        block_shares={
            n: s for _, note in blocks for n, s in note.part("weights").numbers().items()
        },
    )


def _last_history(states: Path) -> tuple[dict[str, float], ...]:
    """The logged steps of the last state that can be read."""
    for state in reversed(list_states(states)):
        try:
            rows = history_of(read_history(state))
        except (UserError, KeyError, TypeError):
            continue
        return tuple(_logged(Fields(row, str(state))) for row in rows)
    return ()


def read_report(said: Fields, settings: dict[str, str]) -> Training:
    """What a run said of itself when it ended, `lrqat.training.report`. Raises ForeignFileError."""
    blocks = list(said.parts("blocks"))
    return Training(
        finished=True,
        settings=settings or {"method": said.text("method")},
        history=tuple(_logged(row) for row in said.parts("history")),
        blocks=tuple(_block(block.text("name"), block) for block in blocks),
        perplexity={n: p.number("perplexity") for n, p in said.part("perplexity").named()},
        kl=said.part("kl").numbers(),
        same_top=said.maybe("same_top_after"),
        changed=said.maybe("changed"),
        seconds=said.maybe("seconds"),
        skipped_steps=said.count("skipped_steps"),
        shares=said.part("weights").numbers(),
        block_shares={n: s for b in blocks for n, s in b.part("weights").numbers().items()},
        sensitivity=said.part("sensitivity").numbers(),
    )


def _logged(row: Fields) -> dict[str, float]:
    """The numbers of a logged step, of which "step" is one."""
    return row.numbers() | {"step": row.number("step")}


def _block(name: str, said: Fields) -> Block:
    return Block(name, said.number("before"), said.number("after"), said.number("changed"))
