"""Our files beside llama-quantize's of the same types: as many bytes, the same types and shapes.

Runs where LLAMA_QUANTIZE names llama.cpp's program; what needs none always does.
"""

import ctypes
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.llama_cpp_speed import OURS, THEIRS, measure, write_forms
from exporters import gguf
from exporters.gguf.blocks import integer_blocks
from exporters.gguf.file.header import Header, read_header
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import OutputError, RuntimeUnavailableError, UserError
from lrqat.runtimes.llama_cpp import ffi
from lrqat.runtimes.llama_cpp.llama_quantize import quantize

TOOL = os.environ.get("LLAMA_QUANTIZE")
needs_tool = pytest.mark.skipif(not TOOL, reason="LLAMA_QUANTIZE names no llama-quantize")
# It makes MXFP4 of experts only, and NVFP4 without a tensor's scale.
BY_LLAMA_QUANTIZE = sorted(set(integer_blocks()) - {"mxfp4", "nvfp4"})


def first_byte(header: Header) -> int:
    """Where the tensors begin."""
    return min(info.start for info in header.tensors.values())


def kinds(header: Header) -> Any:
    """Type, shape and bytes of every tensor."""
    return {n: (info.type_name, info.shape, info.nbytes) for n, info in header.tensors.items()}


@needs_tool
@pytest.mark.parametrize("name", BY_LLAMA_QUANTIZE)
def test_files_are_as_large_as_llama_quantize_makes_them(
    name: str, make_small: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    files = write_forms(make_small(name).path, tmp_path, Path(str(TOOL)))
    ours, theirs = (read_header(files[form]) for form in (OURS, THEIRS))
    assert kinds(ours) == kinds(theirs)
    # What is left is the metadata: ours says where the file comes from.
    extra = files[OURS].stat().st_size - files[THEIRS].stat().st_size
    assert extra == first_byte(ours) - first_byte(theirs)
    assert abs(extra) < 1024


def test_tensors_have_the_bytes_that_ggml_computes(
    make_small: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    try:
        library = ffi.load_library()
    except RuntimeUnavailableError as error:
        pytest.skip(str(error))
    library.ggml_row_size.restype = ctypes.c_size_t
    library.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
    for name, block in integer_blocks().items():
        path = tmp_path / f"{name}.gguf"
        gguf.write(gguf.plan(make_small(name)), path)
        header = read_header(path)
        end = first_byte(header)
        for info in header.tensors.values():
            rows = info.nbytes // library.ggml_row_size(info.type.number, info.shape[-1])
            assert rows * info.shape[-1] == math.prod(info.shape)
            end += info.nbytes + -info.nbytes % 32
        assert path.stat().st_size == end
        assert block.TYPE in {info.type for info in header.tensors.values()}


def test_files_are_timed_in_turns(make_small: Callable[..., Checkpoint], tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    path = tmp_path / "model.gguf"
    gguf.write(gguf.plan(make_small("q4_0")), path)
    found = measure({OURS: path, THEIRS: path}, prompt=4, rounds=3)
    assert found.keys() == {"prefill", "decode"}
    for times in found.values():
        assert times[THEIRS].cpu_ratio == (1, 1, 1)
        low, high = times[OURS].cpu_ratio_interval
        assert low <= times[OURS].cpu_ratio[1] <= high


def test_a_tool_that_is_missing_or_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nowhere"):
        quantize(tmp_path / "nowhere", tmp_path / "a", tmp_path / "b", "q4_0", "f16")
    failing = tmp_path / "llama-quantize"
    failing.write_text("#!/bin/sh\necho no such type >&2; exit 3\n")
    failing.chmod(0o755)
    with pytest.raises(UserError, match=r"failed \(3\): no such type"):
        quantize(failing, tmp_path / "a", tmp_path / "b", "q4_0", "f16")


@needs_tool
def test_bench_compares_both_files(capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks import bench

    sizes = ["--width", "256", "--layers", "1", "--prompt", "4", "--rounds", "2"]
    assert bench.main(["gguf", "--llama-quantize", str(TOOL), *sizes]) == 0
    assert "llama-quantize" in capsys.readouterr().out
