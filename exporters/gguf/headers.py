"""The header of a GGUF file, all of it but the tensors, and with it the size of the file."""

import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from exporters.gguf.file.shards import shard_entries
from exporters.gguf.plans import Plan, padded
from exporters.planning import refuse_inexact


def write_header(plan: Plan, path: Path, no: int) -> int:
    """Write what comes before the tensors of one file of a plan.

    Args:
        plan: without refusals.
        path: the file to write.
        no: which of the plan's files; all but the first say only which part they are.

    Returns:
        Bytes of the file with its tensors.
    """
    writer = gguf.GGUFWriter(path, plan.architecture)
    part = shard_entries(no, len(plan.shards), len(plan.tensors))
    for entry in [*([] if no else plan.metadata), *part]:
        writer.add_key_value(entry.key, entry.value, entry.type, entry.item)
    tensors = plan.shards[no]
    for tensor in tensors:
        # The package's own enumeration lacks some types; it uses no more than the number.
        kind: Any = tensor.block.TYPE
        writer.add_tensor_info(
            tensor.source.name,
            tensor.source.shape,
            np.dtype(np.float32),  # not looked at, since raw_dtype is given
            tensor.nbytes,
            raw_dtype=kind,
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    return padded(path.stat().st_size + sum(tensor.padded_bytes for tensor in tensors))


def file_bytes(plan: Plan) -> int:
    """Bytes of all files that `write` makes of a plan.

    Raises:
        ExportRefusedError: the plan has refusals, or llama.cpp's converter lays the file out.
    """
    refuse_inexact(plan.refusals)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "header.gguf")
        return sum(write_header(plan, path, no) for no in range(len(plan.shards)))
