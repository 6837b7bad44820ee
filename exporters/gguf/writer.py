"""Writing a planned GGUF file: one tensor at a time, verified before it gets its name."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from exporters.gguf.header import read_header
from exporters.gguf.metadata import holds
from exporters.gguf.planning import Plan
from exporters.gguf.reader import check_tensors
from exporters.gguf.selection import pack_source
from exporters.gguf.upstream import run_converter
from lrqat.errors import ExportRefusedError, OutputError
from lrqat.manifest import sha256_of
from lrqat.publish import replaced_file

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes:
        path: the file.
        bytes: its size.
        sha256: of the whole file.
        tensors: how many it holds.
        quantized: how many of them are integers and scales, all verified bit for bit.
        rounded: floating values that were rounded because the options asked for it.
    """

    path: str
    bytes: int
    sha256: str
    tensors: int
    quantized: int
    rounded: int

    def to_json(self) -> dict[str, Any]:
        """Plain values for `--json`."""
        return asdict(self)


def write(
    plan: Plan, path: str | Path, overwrite: bool = False, progress: Progress | None = None
) -> Report:
    """Write `plan` to the file `path`.

    The file appears under its name only after it has been read back and every tensor compared with
    the checkpoint; if anything fails, `path` is as it was.

    Args:
        plan: what `exporters.gguf.plan` returned, without refusals.
        path: the file to write; its folder is made if need be.
        overwrite: whether an existing file may be replaced.
        progress: called with the name of every tensor once it is written.

    Raises:
        ExportRefusedError: the plan has refusals.
        OutputError: the file exists, cannot be written, or reads back differently.
    """
    if plan.refusals:
        reasons = "\n".join(f"- {reason}" for reason in plan.refusals)
        raise ExportRefusedError(f"the export would not be exact:\n{reasons}")
    target = Path(path)
    with replaced_file(target, overwrite) as staged:
        if plan.options.converter is not None:
            tensors, packed = run_converter(plan.checkpoint, plan.options, staged)
            return Report(
                str(target), staged.stat().st_size, sha256_of(staged), tensors, packed, rounded=0
            )
        _write_file(plan, staged, progress or (lambda name: None))
        rounded = _verify_file(plan, staged)
        nbytes, sha256 = staged.stat().st_size, sha256_of(staged)
    quantized = sum(tensor.source.quantized for tensor in plan.tensors)
    return Report(str(target), nbytes, sha256, len(plan.tensors), quantized, rounded)


def _write_file(plan: Plan, path: Path, progress: Progress) -> None:
    writer = gguf.GGUFWriter(path, plan.architecture)
    try:
        for entry in plan.metadata:
            writer.add_key_value(entry.key, entry.value, entry.type, entry.item)
        for tensor in plan.tensors:
            writer.add_tensor_info(
                tensor.source.name,
                tensor.source.shape,
                np.dtype(np.float32),  # not looked at, since raw_dtype is given
                tensor.nbytes,
                raw_dtype=tensor.block.TYPE,  # type: ignore[arg-type]  # only its number is used
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in plan.tensors:
            data = pack_source(plan.checkpoint, tensor.source, tensor.block.NAME)
            writer.write_tensor_data(data)
            progress(tensor.source.name)
    finally:
        writer.close()


def _verify_file(plan: Plan, path: Path) -> int:
    """Raise OutputError unless the file holds the plan; return how many values were rounded."""
    metadata = read_header(path).metadata
    for entry in plan.metadata:
        if not holds(entry, metadata.get(entry.key)):
            raise OutputError(f"the file reads back another {entry.key}; the disk may be failing")
    checks = check_tensors(path, plan.checkpoint)
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
