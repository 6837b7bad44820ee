"""Whole files of every type: exact, the same twice, and no bit of them can change unseen."""

import numpy as np
import pytest

from exporters import gguf
from exporters.gguf.blocks import integer_blocks
from exporters.gguf.file.header import read_header

TENSOR = "blk.0.ffn_down.weight"
# Grids of other forms than the type's own, which its own numbers are made for.
OTHER = {
    "int2-asym-channel": "q2_k",
    "int3-channel": "q3_k",
    "int4-asym-g256": "q4_k",
    "int5-asym-channel": "q5_k",
    "int6-g256": "q6_k",
    "int3-asym-g64": "q4_0",
    "int4-asym-g32": "q5_0",
    "int8-channel": "q8_0",
}
CASES = {name: name for name in integer_blocks()} | OTHER


@pytest.fixture(params=CASES)
def case(request, make_small):
    """A fused checkpoint and the type that it is exported in."""
    return make_small(request.param), CASES[request.param]


def test_files_are_exact_and_the_same_twice(case, tmp_path):
    checkpoint, kind = case
    plan = gguf.plan(checkpoint)
    assert {t.block.NAME for t in plan.tensors if t.source.quantized} == {kind}
    assert gguf.default_name(checkpoint) == f"model-{kind}.gguf"
    first = gguf.write(plan, tmp_path / "a.gguf")
    assert gguf.write(gguf.plan(checkpoint), tmp_path / "b.gguf").sha256 == first.sha256
    assert not any(gguf.verify(tmp_path / "a.gguf", checkpoint).values())
    assert first.rounded == 0
    metadata = read_header(tmp_path / "a.gguf").metadata
    assert metadata["general.file_type"] == int(integer_blocks()[kind].FILE_TYPE)


def test_flipped_bits_are_found(case, tmp_path):
    checkpoint, kind = case
    path = tmp_path / "model.gguf"
    gguf.write(gguf.plan(checkpoint), path)
    info, data = read_header(path).tensors[TENSOR], path.read_bytes()
    scales = integer_blocks()[kind].TYPE.nbytes - 1  # in every type the last byte or the first is d
    rng = np.random.default_rng(0)
    for place in (0, scales, rng.integers(0, info.nbytes)):
        altered = bytearray(data)
        altered[info.start + int(place)] ^= 1 << int(rng.integers(0, 8))
        path.write_bytes(altered)
        found = [check for check in gguf.check_tensors(path, checkpoint) if not check.ok]
        assert [check.name for check in found] == [TENSOR]
        assert found[0].values + found[0].integers + found[0].scales > 0
