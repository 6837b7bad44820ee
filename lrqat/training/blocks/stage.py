"""The loop over the blocks: a model in full precision in, a prepared model out.

A block is in full precision until its turn comes. Then what it makes of the full-precision states
is kept as the target, its weights are put on their grids and fitted, and what it makes of the
states that the blocks before it handed on becomes the inputs of the next.
"""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lrqat.architectures import is_output_head
from lrqat.init import imatrix_file
from lrqat.layers.frozen import downcast_for
from lrqat.layers.norms import settle_norms, thaw_norms
from lrqat.models.hidden_states import anatomy
from lrqat.models.preparation import prepare
from lrqat.models.streaming import StreamedModel, open_streamed
from lrqat.progress import tqdm
from lrqat.training import processes
from lrqat.training.blocks.block_parts import REST, BlockParts
from lrqat.training.blocks.fitting import fit_block
from lrqat.training.blocks.loss import BlockLoss, block_loss, logits_loss
from lrqat.training.blocks.moments import BlockInputs, measure_block
from lrqat.training.blocks.saved import FOLDER, SavedBlocks
from lrqat.training.blocks.start import thaw
from lrqat.training.blocks.states import Examples, HiddenStates
from lrqat.training.blocks.walk import BlockWalk
from lrqat.training.calibration import measure_inputs
from lrqat.training.config import TrainConfig
from lrqat.training.data.blocks import TokenBlocks
from lrqat.training.interruption import interruptible
from lrqat.training.loading import not_one_by_one
from lrqat.training.plan import TrainingPlan
from lrqat.training.stage_settings import COMPENSATED
from lrqat.training.trackers import Record, record_nothing

_REST_TOKENS = 4096  # that the importance of the head's inputs is measured on


@dataclass(frozen=True)
class BlockReport:
    """What became of a block.

    Attributes:
        name: of the block.
        before: its loss (`lrqat.training.blocks.loss`) as it was rounded, on text held out.
        after: the same when it was fitted.
        changed: share of the integers that are not those of round-to-nearest.
        weights: the same of every weight, by name; a state of an earlier lrqat does not say it.
    """

    name: str
    before: float
    after: float
    changed: float
    weights: dict[str, float] = field(default_factory=dict)


def prepare_by_blocks(
    original: Any,
    config: TrainConfig,
    plan: TrainingPlan,
    text: TokenBlocks,
    folder: Path,
    record: Record = record_nothing,
) -> tuple[Any, list[BlockReport]]:
    """Put a model on its grids, block by block, see `lrqat.training.blocks`.

    Args:
        original: in full precision, which becomes the prepared one; None reads the weights of one
            block at a time instead.
        config: the settings, resolved.
        plan: which weights go on which grid, and where to compute.
        text: of which `block_tokens` are used.
        folder: where the run keeps its states; finished blocks found there are taken.
        record: gets what becomes of every block that is fitted.

    Returns:
        The prepared model, and what became of every block.

    Raises:
        ModelError: its blocks cannot be run one at a time, or its files not read so.
        NonFiniteLossError: a block diverged.
        CheckpointError: a finished block was altered.
        Interrupted: Ctrl-C; finished blocks are kept.
    """
    saved = SavedBlocks(folder, writes=processes.is_main())
    if original is not None:
        original.requires_grad_(False).eval()
        stage = _Stage(original, config, plan, saved, text, record)
        return original, stage.go(folder / FOLDER)
    streamed = open_streamed(
        config.source,
        dtype=plan.dtype,
        device=plan.device,
        trust_remote_code=config.trust_remote_code,
    )
    if streamed is None:
        raise not_one_by_one(config.model)
    blocks = f"{anatomy(streamed.model).layers}."
    streamed.fill(lambda name: not name.startswith(blocks))
    stage = _Stage(streamed.model, config, plan, saved, text, record, streamed)
    reports = stage.go(folder / FOLDER)
    return streamed.complete(plan.device), reports


class _Stage:
    def __init__(
        self,
        model: Any,
        config: TrainConfig,
        plan: TrainingPlan,
        saved: SavedBlocks,
        text: TokenBlocks,
        record: Record,
        files: StreamedModel | None = None,
    ) -> None:
        self.files, self.record = files, record
        self.text = text.first(max(2, config.block_text // config.sequence_length))
        self.model, self.config, self.plan, self.saved = model, config, plan, saved
        positions = self.text.positions(slice(None))
        self.walk = BlockWalk(model, config.sequence_length, positions)
        self.parts = BlockParts(model, plan.surgery, self.walk.names)
        self.dtype = next(model.parameters()).dtype
        layers = {n: t.shape[1] for n, t in plan.surgery.quantized.items() if t.is_layer}
        heads = [name for name in layers if is_output_head(name)]
        self.given = (
            imatrix_file.read(config.imatrix, layers, optional=heads) if config.imatrix else {}
        )

    def go(self, folder: Path) -> list[BlockReport]:
        if all(name in self.saved for name in (*self.walk.names, REST)):
            return self._all_saved()
        self.folder = folder
        exact, inputs = self._enter(folder), self._enter(folder)
        what = "finished blocks are kept, and the run ends after this step"
        try:
            with interruptible(folder.parent, what) as self.interruption:
                reports = self._all_blocks(exact, inputs)
                self._rest(inputs)
                self.interruption.raise_if_asked()
        finally:
            exact.close()
            inputs.close()
        return reports

    def _all_blocks(self, exact: HiddenStates, inputs: HiddenStates) -> list[BlockReport]:
        reports = []
        bar = tqdm(self.walk.names, desc="blocks", unit="block", disable=not processes.is_main())
        for index, name in enumerate(bar):
            reports.append(self._block(index, name, exact, inputs))
            bar.set_postfix_str(
                f"error {reports[-1].before:.2g} -> {reports[-1].after:.2g}, "
                f"{reports[-1].changed:.1%} of integers changed"
            )
        return reports

    def _all_saved(self) -> list[BlockReport]:
        notes = {}
        for name in (*self.walk.names, REST):
            self._fill(name)
            notes[name] = self._load(name)
        return [BlockReport(name, **notes[name]) for name in self.walk.names]

    def _block(
        self, index: int, name: str, exact: HiddenStates, inputs: HiddenStates
    ) -> BlockReport:
        """Fit a block; `exact` and `inputs` become what leaves it."""
        self._fill(name)
        done = name in self.saved
        measured = None if done else self._measure(index, name, inputs)
        exact.become(lambda rows: self.walk.run(index, exact.batch(rows, self.dtype), rows))
        if measured is None:
            report = BlockReport(name, **self._load(name))
        else:
            examples = Examples(inputs, exact, self.text.begins)
            report = self._fit(index, name, measured, examples)
        inputs.become(lambda rows: self.walk.run(index, inputs.batch(rows, self.dtype), rows))
        return report

    def _fit(self, index: int, name: str, measured: BlockInputs, examples: Examples) -> BlockReport:
        importance = measured.importance | self.given
        prepared = replace(self.config, phi="fp32", lora_init="random")
        prepare(self.model, self.parts.plan(name), prepared, importance=importance)
        weights = self.parts.weights(name)
        nearest = {n: weight.integers() for n, weight in weights.items()}
        thaw(weights, measured.moments)
        block = self.walk.block(index)
        if self.config.train_norms:
            thaw_norms(block)
        fit = fit_block(
            lambda hidden, rows: self.walk.run(index, hidden, rows),
            block,
            examples,
            self._loss(index),
            self.config,
            self.config.seed + index,
            self.dtype,
            self.folder,
            self.interruption.raise_if_asked,
        )
        for weight in weights.values():
            weight.freeze(downcast_for(self.config.phi, weight.grid))
        settle_norms(block)
        changed = {n: int((weights[n].integers() != q).sum()) for n, q in nearest.items()}
        share = sum(changed.values()) / max(1, sum(q.numel() for q in nearest.values()))
        shares = {n: changed[n] / q.numel() for n, q in nearest.items()}
        report = BlockReport(name, **asdict(fit), changed=share, weights=shares)
        note = {n: v for n, v in asdict(report).items() if n != "name"}
        self.saved.save(name, weights, self._norms(name), note)
        errors = {"error_before": fit.before, "error_after": fit.after, "changed": share}
        self.record("blocks", errors, index + 1)
        return report

    def _loss(self, index: int) -> BlockLoss:
        """What a block minimises."""
        if index + 1 < len(self.walk.names):
            return block_loss
        return logits_loss(self.walk.tail(), self.model.config.get_text_config().vocab_size)

    def _measure(self, index: int, name: str, inputs: HiddenStates) -> BlockInputs:
        """What the blocks before hand on to the projections of a block, by module name."""
        quantized = self.parts.plan(name).quantized
        layers = [n for n, target in quantized.items() if target.is_layer]
        most = self.config.importance_tokens
        found = measure_block(
            self.walk.as_module(index, inputs.row_slices(most)),
            [n.removeprefix(f"{name}.") for n in layers],
            inputs.batches(self.dtype, most),
            moments=self.config.block_start == COMPENSATED,
        )
        return BlockInputs(
            {f"{name}.{n}": squares for n, squares in found.importance.items()},
            {f"{name}.{n}": moments for n, moments in found.moments.items()},
        )

    def _rest(self, inputs: HiddenStates) -> None:
        """What is in no block: embedding and head, which are put on their grids as ever."""
        if REST in self.saved:
            self._load(REST)
            return
        part = self.parts.plan(REST)
        count = min(len(inputs), max(1, _REST_TOKENS // inputs.shape[1]))
        # One at a time: logits of a large vocabulary are what takes most memory of all.
        batches = [inputs.batch(slice(i, i + 1), self.dtype) for i in range(count)]
        measured = measure_inputs(self.walk.tail(), part, self.config, self.config.imatrix, batches)
        prepare(
            self.model,
            part,
            self.config,
            importance=measured.importance,
            directions=measured.directions,
        )
        self.saved.save(REST, self.parts.weights(REST), {}, {})

    def _load(self, name: str) -> dict[str, Any]:
        """Make the weights of a block, or of the rest, that was finished before; its note."""
        cheap = replace(self.config, range_init="minmax", lora_init="random")
        prepare(self.model, self.parts.plan(name), cheap)
        return self.saved.load(name, self.parts.weights(name), self._norms(name))

    def _norms(self, name: str) -> dict[str, nn.Parameter]:
        """What is trained of the norms of a block, by name."""
        return self.parts.norms(name) if self.config.train_norms else {}

    def _fill(self, name: str) -> None:
        """Read the weights of a block, if they are not there."""
        if self.files is not None:
            self.files.fill(lambda parameter: parameter.startswith(f"{name}."))

    def _enter(self, folder: Path) -> HiddenStates:
        """The states of the text before the first block."""
        tokens = torch.from_numpy(self.text.tokens.astype("int64"))
        hidden = self.walk.embed(tokens[:1]).shape[-1]
        shape = (len(tokens), tokens.shape[1], hidden)
        states = HiddenStates(shape, torch.device(self.plan.device), folder)
        states.become(lambda rows: self.walk.embed(tokens[rows], rows))
        return states
