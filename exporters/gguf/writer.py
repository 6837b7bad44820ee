"""Writing a planned GGUF file: packed by all cores, in order, verified before it gets its name."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from exporters.format import Progress
from exporters.gguf.converter.upstream import run_converter
from exporters.gguf.file.header import TensorInfo
from exporters.gguf.file.shards import read_model, shard_paths
from exporters.gguf.headers import write_header
from exporters.gguf.metadata import holds
from exporters.gguf.modelfile import NAME as MODELFILE
from exporters.gguf.plans import Plan, PlannedTensor
from exporters.gguf.tensors.packing import packed_pieces
from exporters.gguf.verification import check_tensors
from exporters.parallel import in_order
from exporters.planning import refuse_inexact
from lrqat.atomic_files import replaced_files
from lrqat.checkpoint.manifest import sha256_of
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import OutputError


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        path: the file; of several, the first, which is the one to load.
        bytes: size of all files.
        sha256: of `path`.
        files: sha256 of every file, by its name.
        tensors: how many they hold.
        quantized: how many of them are integers and scales, all verified bit for bit.
        rounded: floating values that were rounded because the options asked for it.
        notes: what a user should know of the Modelfile, if one was written.
    """

    path: str
    bytes: int
    sha256: str
    files: dict[str, str]
    tensors: int
    quantized: int
    rounded: int
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return asdict(self)


def write(
    plan: Plan,
    path: str | Path,
    overwrite: bool = False,
    progress: Progress = lambda name: None,
    verified: Progress = lambda name: None,
    workers: int | None = None,
) -> Report:
    """Write `plan` to the file `path`, or to several of similar names if the plan has them.

    Files appear under their names only after they have been read back and every tensor compared
    with the checkpoint; if anything fails, what was there is as it was.

    Args:
        plan: what `exporters.gguf.plan` returned, without refusals.
        path: the file to write; its folder is made if need be.
        overwrite: whether an existing file may be replaced.
        progress: called with the name of every tensor once it is written.
        verified: called with the name of every tensor once it has been compared.
        workers: processes that pack and compare; None: one a core. The bytes do not depend on it.

    Raises:
        ExportRefusedError: the plan has refusals.
        OutputError: the file exists, cannot be written, or reads back differently.
    """
    refuse_inexact(plan.refusals)
    targets = shard_paths(Path(path), len(plan.shards))
    with _staged(plan, targets, overwrite) as staged:
        if plan.options.converter is not None:
            tensors, quantized = run_converter(plan.checkpoint, plan.options, staged[0])
            rounded = 0
            for tensor in plan.tensors:  # the converter tells nothing of its progress
                progress(tensor.source.name)
                verified(tensor.source.name)
            hashes = [sha256_of(file) for file in staged]
        else:
            _write_files(plan, staged, progress, workers)
            with ThreadPoolExecutor(1) as pool:
                hashing = pool.map(_settle, staged)
                rounded = _verify(plan, staged[0], verified, workers)
            hashes = list(hashing)
            tensors = len(plan.tensors)
            quantized = sum(tensor.source.quantized for tensor in plan.tensors)
        sizes = [file.stat().st_size for file in staged]
    return Report(
        path=str(targets[0]),
        bytes=sum(sizes),
        sha256=hashes[0],
        files=dict(zip((target.name for target in targets), hashes, strict=True)),
        tensors=tensors,
        quantized=quantized,
        rounded=rounded,
        notes=list(plan.modelfile.notes) if plan.modelfile is not None else [],
    )


@contextmanager
def _staged(plan: Plan, targets: list[Path], overwrite: bool) -> Iterator[list[Path]]:
    """Temporary files that become `targets`, and with them the Modelfile if there is one."""
    if plan.modelfile is None:
        with replaced_files(targets, overwrite) as staged:
            yield staged
        return
    beside = targets[0].with_name(MODELFILE)
    with replaced_files([*targets, beside], overwrite) as (*staged, last):
        last.write_text(plan.modelfile.text(targets[0].name), encoding="utf-8")
        yield staged


def _write_files(plan: Plan, paths: list[Path], progress: Progress, workers: int | None) -> None:
    for no, path in enumerate(paths):
        os.truncate(path, write_header(plan, path, no))  # zeros for the tensors
    places = read_model(paths[0]).tensors
    for name in in_order(
        partial(_write_tensor, plan.checkpoint),
        [(tensor, places[tensor.source.name]) for tensor in plan.tensors],
        lambda pair: pair[0].source.working_bytes,
        workers,
    ):
        progress(name)


def _settle(path: Path) -> str:
    """The sha256 of a file that is now wholly on the disk; both while the tensors are compared."""
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
    return sha256_of(path)


def _write_tensor(checkpoint: Checkpoint, pair: tuple[PlannedTensor, TensorInfo]) -> str:
    """Pack a tensor into its place in a file; gives its name."""
    tensor, place = pair
    with place.path.open("r+b") as stream:
        stream.seek(place.start)
        for packed in packed_pieces(checkpoint, tensor.source, tensor.block.NAME):
            stream.write(packed.data)
    return tensor.source.name


def _verify(plan: Plan, path: Path, verified: Progress, workers: int | None) -> int:
    """Raise OutputError unless the file holds the plan; return how many values were rounded."""
    metadata = read_model(path).metadata
    for entry in plan.metadata:
        if not holds(entry, metadata.get(entry.key)):
            raise OutputError(f"the file reads back another {entry.key}; the disk may be failing")
    checks = check_tensors(path, plan.checkpoint, verified, workers)
    wrong = [check for check in checks if not check.ok]
    if wrong:
        raise OutputError(
            f"{len(wrong)} tensors read back differently, the first {wrong[0]}; nothing was "
            "written. The disk may be failing, or it is a bug: please report it"
        )
    noted = {tensor.source.name for tensor in plan.tensors if tensor.note}
    if any(check.rounded and check.name not in noted for check in checks):
        raise OutputError("a tensor was rounded that the plan did not round; please report it")
    return sum(check.rounded for check in checks)
