"""What a whole run needs in memory: the fullest of its phases, not its steps alone.

    loading      the model, while its files are mapped; streamed, the prepared model and one weight
    measuring    the model and a batch of text, what is kept of the inputs; the search of the start
    blocks       a block's weights, their optimiser, and the hidden states before it
    training     a step, see `lrqat.training.estimate`
    evaluation   the model in float32, logits of one window, and their probabilities in float64
    writing      the model, and a copy of what goes into the checkpoint

They come one after the other, so the largest counts. On a CPU the process itself is added: Python
and the libraries. Everything is from shapes, but for what was measured (docs/memory.md): what the
process imports and reads later, what glibc's allocator loses in a step, and what the search of
scales holds at a time.
"""

from dataclasses import dataclass
from typing import Any

import torch

from lrqat.evaluation.perplexity import chunk_rows
from lrqat.init.input_directions import sketch_columns
from lrqat.layers.methods import METHODS
from lrqat.models.stored_model import StoredModel
from lrqat.models.surgery import SurgeryPlan
from lrqat.training.blocks.memory import block_bytes
from lrqat.training.calibration import batch_shape, is_directed, is_measured
from lrqat.training.config import TrainConfig
from lrqat.training.estimate import MemoryEstimate, estimate_memory, on_meta, prepared_on_meta
from lrqat.training.meta_step import forward_bytes
from lrqat.training.settings import NONE

_LATER_LIBRARIES = 96 << 20  # the Trainer, the tokenizer, the text
# What is made and freed again, above all logits in chunks, leaves holes that the C library does not
# fill. In copies of all logits of a batch in float32; a GPU's allocator does better, and what it
# loses is not counted.
_LOST_IN_A_STEP, _LOST_IN_A_PASS, _LOST_ALWAYS = 2.4, 0.5, 64 << 20
_SEARCH_BYTES = 96 << 20  # candidates of a chunk of weights
_COMPARED = 10  # bytes a value while the type that a tensor is stored in is chosen
_COPIES_OF_ONE = 6  # float32 copies of the largest weight that streaming holds at most


@dataclass(frozen=True)
class RunMemory:
    """Bytes that a run needs.

    Attributes:
        libraries: of the process before it loads anything; 0 on a GPU.
        phases: name -> bytes that the phase needs on the run's device, without `libraries`.
        step: the parts of a training step.
        host: bytes that a run on a GPU needs beside it, to load the model; else 0.
    """

    libraries: int
    phases: dict[str, int]
    step: MemoryEstimate
    host: int = 0

    @property
    def fullest(self) -> str:
        """The phase that needs most."""
        return max(self.phases, key=self.phases.__getitem__)

    @property
    def total(self) -> int:
        """What the run needs at its fullest moment."""
        return self.libraries + self.phases[self.fullest]

    def with_libraries(self) -> dict[str, int]:
        """What the process has in each phase."""
        return {name: self.libraries + size for name, size in self.phases.items()}

    def to_json(self) -> dict[str, Any]:
        """Every phase with the libraries, the parts of a step, and the total."""
        return {
            "libraries": self.libraries,
            "phases": self.with_libraries(),
            "step": self.step.to_json(),
            "host": self.host,
            "total": self.total,
        }


def estimate_run(
    stored: StoredModel,
    plan: SurgeryPlan,
    config: TrainConfig,
    *,
    dtype: torch.dtype,
    device: str,
    libraries: int,
) -> RunMemory:
    """Estimate what a run needs.

    Args:
        stored: the model's files.
        plan: which weights go on which grid.
        config: the settings, resolved.
        dtype: compute type.
        device: torch device name.
        libraries: bytes that the process holds already.

    Raises:
        ModelError: the teacher is a model that cannot be found.
    """
    step = estimate_memory(stored.skeleton, plan, config, dtype)
    run = _Run(stored, plan, config, dtype, step, on_cpu=torch.device(device).type == "cpu")
    phases = {"loading": run.loading(), "measuring": run.measuring()}
    if config.by_blocks:
        phases["blocks"] = run.blocks()
    if METHODS[config.method].trains and config.as_a_whole:
        phases["training"] = run.training()
    phases |= {"evaluation": run.evaluation(), "writing": run.writing()}
    if run.on_cpu:
        return RunMemory(libraries + _LATER_LIBRARIES, phases, step)
    host = libraries + _LATER_LIBRARIES + phases["loading"]
    return RunMemory(0, phases | {"loading": run.whole}, step, host)


class _Run:
    """The sizes of one run, and its phases."""

    def __init__(
        self,
        stored: StoredModel,
        plan: SurgeryPlan,
        config: TrainConfig,
        dtype: torch.dtype,
        step: MemoryEstimate,
        *,
        on_cpu: bool,
    ) -> None:
        self.config, self.plan, self.step, self.on_cpu = config, plan, step, on_cpu
        self._stored = stored
        skeleton = stored.skeleton
        self.vocabulary = skeleton.config.get_text_config().vocab_size
        original = on_meta(type(skeleton), skeleton.config, dtype)
        self.whole = _size(original)
        # What stays from the last step on: the prepared model, without what only training has.
        self.prepared = step.frozen + step.floating + step.adapters + step.scales
        self.second = step.teacher if config.teacher != NONE else 0
        self._files, kept = self._stored_bytes(dtype)
        # What is stored as it is computed is not copied: the model is the mapped file.
        self.mapped = self._files - step.floating if kept and on_cpu else 0
        self._window = forward_bytes(original, (1, config.context))
        self._batch = forward_bytes(original, self._batch_shape(), cached=True)
        del original
        student = prepared_on_meta(skeleton, plan, config, torch.float32)
        self._student_window = forward_bytes(student, (1, config.context))
        self.finished = _size(student)

    def _batch_shape(self) -> tuple[int, int]:
        return batch_shape(
            tokens=self.config.importance_tokens,
            batch_size=self.config.batch_size,
            length=self.config.sequence_length,
        )

    def loading(self) -> int:
        if self.config.streamed:
            return self.prepared + self._one_weight()
        return self._files if self.mapped else self._files + self.whole

    def measuring(self) -> int:
        if self.config.streamed:
            return self.prepared + max(self._one_weight(), self._scoring(self._student_window))
        inputs = self._kept_of_inputs()
        needed = [self.whole + self._scoring(self._window)]
        if self.config.by_blocks:
            return max(needed[0], self.prepared + self.second + self._scoring(self._student_window))
        if is_measured(self.config):
            lost = self._lost(self._batch_shape(), _LOST_IN_A_PASS)
            needed.append(self.whole + self._batch + inputs + lost)
        prepared = self.prepared + self.mapped
        needed.append(max(self.whole, prepared) + inputs + _SEARCH_BYTES)
        needed.append(prepared + self.second + self._scoring(self._student_window))
        return max(needed)

    def blocks(self) -> int:
        model = max(self.whole, self.prepared) + self.mapped
        return model + block_bytes(self._stored.skeleton, self.plan, self.config) + _LOST_ALWAYS

    def training(self) -> int:
        # A state is saved between two steps, from a copy of the moments.
        saving = self.prepared + self.second + (2 if self.on_cpu else 1) * self.step.optimizer
        shape = (self.config.batch_size, self.config.sequence_length)
        return max(self.step.total, saving) + self.mapped + self._lost(shape, _LOST_IN_A_STEP)

    def _lost(self, shape: tuple[int, int], share: float) -> int:
        """What the host's allocator loses where there are logits of (batch, tokens)."""
        logits = 4 * shape[0] * shape[1] * self.vocabulary
        return _LOST_ALWAYS + round(share * logits) if self.on_cpu else 0

    def evaluation(self) -> int:
        return self.finished + self.second + self._scoring(self._student_window)

    def writing(self) -> int:
        packed = round(self.plan.weights * self.plan.bits_per_weight / 8)
        left = [p.numel() for p in self._stored.skeleton.parameters()]
        unquantized = max(0, sum(left) - self.plan.weights)
        comparing = _COMPARED * min(max(left), unquantized)
        return self.finished + self.second + packed + 2 * unquantized + comparing

    def _scoring(self, forward: int) -> int:
        """A window's forward pass, then its logits and, on the host, their probabilities."""
        if not self.on_cpu:
            return forward
        teacher = self.config.teacher != NONE
        logits = 4 * self.config.context * self.vocabulary * (2 if teacher else 1)
        rows = chunk_rows(self.config.context - 1 - self.config.context // 2, self.vocabulary)
        doubles = 8 * rows * self.vocabulary * (5 if teacher else 2)
        return max(forward + (logits // 2 if teacher else 0), logits + doubles)

    def _kept_of_inputs(self) -> int:
        """Sums over the tokens, and their means."""
        if not is_measured(self.config):
            return 0
        columns = [t.shape[1] for t in self.plan.quantized.values() if t.is_layer or t.tied_to]
        rank = self.config.rank if is_directed(self.config) else 0
        return 2 * sum(8 * width + 4 * width * sketch_columns(width, rank) for width in columns)

    def _stored_bytes(self, dtype: torch.dtype) -> tuple[int, bool]:
        """Bytes of the files' tensors, and whether all of them are of the compute type."""
        weights = self._stored.weights
        if weights is None:
            return self.whole, False
        tensors = [weights.on_meta(name) for name in weights.in_file_order(weights.names)]
        same = all(tensor.dtype == dtype for tensor in tensors)
        return sum(tensor.nbytes for tensor in tensors), same and not self.config.streamed

    def _one_weight(self) -> int:
        largest = max(t.shape[0] * t.shape[1] for t in self.plan.quantized.values())
        return 4 * _COPIES_OF_ONE * largest


def _size(model: Any) -> int:
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())
