"""A model in several files, as llama.cpp splits and loads it.

    model-00001-of-00003.gguf    all metadata, and the first tensors
    model-00002-of-00003.gguf    more tensors, and so on

    split.no             u16   0, 1, 2
    split.count          u16   3
    split.tensors.count  i32   tensors of all files together

A loader is given the first file and finds the others by their names. Sizes are of tensors, without
metadata, as llama-gguf-split counts them, and decimal: 2G is 2,000,000,000 bytes. Source:
src/llama.cpp `llama_split_path`, src/llama-model-loader.cpp, tools/gguf-split/gguf-split.cpp.
"""

import re
from collections.abc import Iterable
from pathlib import Path

from gguf import GGUFValueType as Type

from exporters.gguf.file.header import GgufFileError, Header, read_header
from exporters.gguf.file.key_values import KeyValue
from lrqat.atomic_files import is_present
from lrqat.errors import ExportRefusedError

_NO, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
_MOST_FILES = 2**16 - 1


def split_sizes(sizes: Iterable[int], most: int | None) -> list[int]:
    """How many tensors each file gets, in their order.

    Args:
        sizes: bytes of every tensor, padding included.
        most: bytes of a file's tensors; a larger tensor gets a file of its own. None: one file.

    Raises:
        ExportRefusedError: more files than llama.cpp can count.
    """
    counts, filled = [0], 0
    for size in sizes:
        if most is not None and counts[-1] and filled + size > most:
            counts.append(0)
            filled = 0
        counts[-1] += 1
        filled += size
    if len(counts) > _MOST_FILES:
        raise ExportRefusedError(f"{len(counts)} files are too many; choose a larger size")
    return counts


def shard_paths(path: Path, count: int) -> list[Path]:
    """Names of the files of a model called `path`; a single file keeps its name."""
    if count == 1:
        return [path]
    stem = re.sub(r"-\d{5}-of-\d{5}$", "", path.name.removesuffix(".gguf"))
    return [path.with_name(f"{stem}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)]


def model_files(path: Path) -> list[Path]:
    """The files of the model whose first file is `path`, by their names; those that exist."""
    found = re.search(r"-00001-of-(\d{5})\.gguf$", path.name)
    paths = shard_paths(path, max(int(found[1]), 1)) if found else [path]
    return [each for each in paths if each.is_file()]


def shard_entries(no: int, count: int, tensors: int) -> list[KeyValue]:
    """The metadata that says which part of a model a file is; none for a whole one."""
    if count == 1:
        return []
    return [
        KeyValue(_NO, no, Type.UINT16),
        KeyValue(_COUNT, count, Type.UINT16),
        KeyValue(_TENSORS, tensors, Type.INT32),
    ]


def read_model(path: Path, unknown_types: bool = False) -> Header:
    """`read_header` of a whole model: one file, or the first of several.

    Files that a killed export had nearly published are finished first.

    Returns:
        The first file's metadata and the tensors of all.

    Raises:
        GgufFileError: a file is not valid or missing, or they are not parts of one model.
    """
    is_present(path)  # or it is, now
    first = read_header(path, unknown_types)
    count = first.metadata.get(_COUNT, 1)
    if type(count) is not int or not 1 <= count <= _MOST_FILES:
        raise GgufFileError(f"{path} is not a valid GGUF file: it says {count!r} files")
    if count == 1:
        return first
    paths = shard_paths(path, count)
    if first.said(_NO) != 0 or path.name != paths[0].name:
        raise GgufFileError(f"{path} is one of {count} parts of a model; give {paths[0].name}")
    tensors = dict(first.tensors)
    for no, part in enumerate(paths[1:], start=1):
        header = read_header(part, unknown_types)
        if header.said(_NO) != no or header.said(_COUNT) != count:
            raise GgufFileError(f"{part} is not part {no + 1} of {count}; export the model again")
        if header.tensors.keys() & tensors.keys():
            raise GgufFileError(f"{part} holds a tensor that another part has too; export again")
        tensors |= header.tensors
    if len(tensors) != first.said(_TENSORS):
        raise GgufFileError(
            f"the {count} parts of {path} hold {len(tensors)} tensors and not the "
            f"{first.said(_TENSORS)!r} they should; export the model again"
        )
    return Header(first.metadata, tensors)
