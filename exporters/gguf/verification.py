"""L0: what a GGUF file's own bytes hold, compared with the checkpoint, number by number.

The file is parsed by `header`, not by the library that wrote it; the integers and scales come out
of the file's bytes and are compared with the checkpoint's, whose rows are put in the file's order:
every number that the file stores with the number that the checkpoint's become in its type, and what
they multiply to with the checkpoint's weights.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from exporters.gguf.architectures import find_architecture
from exporters.gguf.blocks import find_tensor_scale, float_blocks, integer_blocks
from exporters.gguf.converter.upstream import mismatching_rows
from exporters.gguf.file.header import Header, TensorInfo
from exporters.gguf.file.shards import read_model
from exporters.gguf.layout.fields import Factors
from exporters.gguf.metadata import differing
from exporters.gguf.provenance import CONVERTER
from exporters.gguf.tensors.rounded_values import value_blocks
from exporters.gguf.tensors.sources import Source, find_sources
from exporters.gguf.tensors.weight_scales import weight_scale
from exporters.parallel import in_order
from exporters.text_model import text_model
from lrqat.checkpoint.reader import Checkpoint, QuantizedTensor
from lrqat.errors import ExportRefusedError


@dataclass(frozen=True)
class TensorCheck:
    """The comparison of one tensor; all zero and no problem means equal bit for bit.

    Attributes:
        name: its name in the file.
        integers: codes that differ.
        scales: scales, minima and their parts that differ.
        values: weights that differ from the checkpoint's, or from what their type rounds them to.
        rounded: floating values that their type does not hold exactly (as asked for).
        problem: why it could not be compared at all (missing, another shape ...), or empty.
    """

    name: str
    integers: int = 0
    scales: int = 0
    values: int = 0
    rounded: int = 0
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether the file holds what it should."""
        return not (self.integers or self.scales or self.values or self.problem)

    def differences(self, source: Source | None) -> int:
        """Elements that differ; all of them for a tensor that could not be compared."""
        size = math.prod(source.shape) if source else 1
        return size if self.problem else self.integers + self.scales or self.values


def verify(path: str | Path, checkpoint: Checkpoint) -> dict[str, int]:
    """Compare the GGUF file `path` with `checkpoint`: every tensor, and what the model is.

    Of a model in several files, `path` is the first. Of a file that llama.cpp's own converter laid
    out, the rows of its packed tensors are compared, see `upstream.mismatching_rows`.

    Returns:
        Elements that differ, by GGUF name: codes, scales and minima, and if all are equal, weights
        that are not the checkpoint's (rounded to the type that they are stored in). All zero is a
        pass; a missing tensor counts whole, one that the checkpoint does not have counts 1. A
        hyperparameter or a part of the vocabulary that is not the checkpoint's counts 1, by key.

    Raises:
        GgufFileError: the file is not a valid GGUF file.
        ExportRefusedError: the checkpoint has no form in GGUF.
        CheckpointError: the checkpoint is not valid.
    """
    header = read_model(Path(path))
    if CONVERTER in header.metadata:
        return mismatching_rows(header, checkpoint)
    checkpoint = text_model(checkpoint)
    by_name = {source.name: source for source in _sources(header, checkpoint)}
    found = {c.name: c.differences(by_name.get(c.name)) for c in _checks(header, checkpoint)}
    keys = differing(header, checkpoint, find_architecture(checkpoint.config))
    return found | dict.fromkeys(keys, 1)


def check_tensors(
    path: str | Path,
    checkpoint: Checkpoint,
    progress: Callable[[str], None] = lambda name: None,
    workers: int | None = None,
) -> list[TensorCheck]:
    """As `verify`, but of tensors alone, and saying what differs.

    Args:
        path: as for `verify`.
        checkpoint: the same.
        progress: called with the name of every tensor that was compared.
        workers: processes; None: one a core.
    """
    return _checks(read_model(Path(path)), checkpoint, progress, workers)


def _checks(
    header: Header,
    checkpoint: Checkpoint,
    progress: Callable[[str], None] = lambda name: None,
    workers: int | None = None,
) -> list[TensorCheck]:
    sources = _sources(header, checkpoint)
    checks = []
    for check in in_order(
        partial(_check, checkpoint),
        [(source, header.tensors.get(source.name)) for source in sources],
        lambda pair: pair[0].working_bytes,
        workers,
    ):
        progress(check.name)
        checks.append(check)
    extra = sorted(set(header.tensors) - {source.name for source in sources})
    return checks + [TensorCheck(name, problem="not in the checkpoint") for name in extra]


def _sources(header: Header, checkpoint: Checkpoint) -> list[Source]:
    """All tensors that the file should have; those of scales if the types of their weights do."""
    found = find_sources(checkpoint, find_architecture(checkpoint.config))
    blocks = {name: integer_blocks().get(i.type_name.lower()) for name, i in header.tensors.items()}
    stored = ((source, blocks.get(source.name)) for source in found)
    scales = [weight_scale(checkpoint, source, block) for source, block in stored if block]
    return [*found, *filter(None, scales)]


def _check(checkpoint: Checkpoint, pair: tuple[Source, TensorInfo | None]) -> TensorCheck:
    source, info = pair
    if info is None:
        return TensorCheck(source.name, problem="missing")
    if info.shape != source.shape:
        return TensorCheck(source.name, problem=f"shape {info.shape}, not {source.shape}")
    kind = info.type_name.lower()
    if kind in integer_blocks() and source.quantized:
        return _check_integers(info, source, checkpoint, kind)
    if kind in float_blocks() or (kind in value_blocks() and not source.quantized):
        return _check_values(info, source, checkpoint, kind)
    return TensorCheck(source.name, problem=f"type {info.type_name}")


def _check_integers(
    info: TensorInfo, source: Source, checkpoint: Checkpoint, kind: str
) -> TensorCheck:
    block = integer_blocks()[kind]
    integers = scales = values = 0
    for rows, tensor in source.quantized_pieces(checkpoint):
        found = block.unpack(info.read(rows))
        try:
            expected = block.encode(tensor.q, tensor.scales, tensor.grid)
        except ExportRefusedError as error:
            return TensorCheck(source.name, problem=str(error))
        differences = found.differences(expected)
        integers, scales = integers + differences[0], scales + differences[1]
        factors, tensor_scale = block.factors(found), find_tensor_scale(block)
        if tensor_scale is not None:  # which is a tensor of its own, and compared there
            factors = factors.times(tensor_scale(tensor.scales))
        values += _unlike_weights(factors, tensor)
    return TensorCheck(source.name, integers, scales, values)


def _unlike_weights(found: Factors, tensor: QuantizedTensor) -> int:
    """How many weights differ. They are multiplied only where the factors differ."""
    if found.are_those_of(tensor.q, tensor.scale, tensor.scales.offset):
        return 0
    # Zeros are equal whatever their sign; NaN differs from all numbers.
    return int(np.count_nonzero(found.weights() != tensor.dequantize()))


def _check_values(
    info: TensorInfo, source: Source, checkpoint: Checkpoint, kind: str
) -> TensorCheck:
    block = value_blocks()[kind]
    wrong = rounded = 0
    for rows, exact in source.read_pieces(checkpoint):
        found = block.unpack(info.read(rows)).view(np.uint32)
        expected = np.ascontiguousarray(exact).view(np.uint32)
        if not np.array_equal(found, expected):  # then it must be what its type rounds them to
            kept = block.unpack(block.pack(exact)).view(np.uint32)
            wrong += int(np.count_nonzero(found != kept))
            rounded += int(np.count_nonzero(kept != expected))
    return TensorCheck(source.name, values=wrong, rounded=rounded)
