"""Teacher caches that were damaged, and arguments that no cache can have."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrqat.errors import DataError, OutputError, UserError
from lrqat.training.objectives.teacher_cache import (
    FILE_NAME,
    TeacherCache,
    is_complete,
    write_cache,
)
from tests.support.teacher_caches import key_of
from tests.support.zoo import VOCABULARY


@settings(max_examples=25, deadline=None)
@given(at=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_an_altered_shard_is_found(written, at, bit):
    folder, key = written
    path = folder / "shard-00000.safetensors"
    data = path.read_bytes()
    altered = bytearray(data)
    altered[at % len(data)] ^= 1 << bit
    path.write_bytes(altered)
    try:
        with pytest.raises(DataError, match="is not what was written"):
            TeacherCache.open(folder, key)
    finally:
        path.write_bytes(data)
    TeacherCache.open(folder, key)


@pytest.fixture(scope="module")
def written(teacher, blocks, tmp_path_factory):
    folder, key = tmp_path_factory.mktemp("cache"), key_of(blocks)
    write_cache(folder, key, blocks, teacher, batch_size=8)
    return folder, key


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"shards": 3}', b"\xff"])
def test_a_damaged_index_is_refused(teacher, blocks, tmp_path, content):
    key = key_of(blocks)
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(DataError, match=FILE_NAME):
        is_complete(tmp_path, key)


def test_a_file_in_the_place_of_a_shard_is_refused(teacher, blocks, tmp_path):
    (tmp_path / "shard-00000.safetensors").write_bytes(b"mine")
    with pytest.raises(DataError, match="is no shard of a teacher cache"):
        write_cache(tmp_path, key_of(blocks), blocks, teacher, batch_size=8)
    assert (tmp_path / "shard-00000.safetensors").read_bytes() == b"mine"


def test_a_missing_shard_is_found(teacher, blocks, tmp_path, two_a_shard):
    key = key_of(blocks)
    write_cache(tmp_path, key, blocks, teacher, batch_size=8)
    (tmp_path / "shard-00002.safetensors").unlink()
    with pytest.raises(DataError, match=r"shard-00002\.safetensors is missing"):
        TeacherCache.open(tmp_path, key)


def test_a_file_as_the_folder_is_an_output_error(teacher, blocks, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="is a file"):
        write_cache(tmp_path / "file", key_of(blocks), blocks, teacher, batch_size=8)


@pytest.mark.parametrize("k", [0, -1, VOCABULARY + 1])
def test_a_k_outside_the_vocabulary_is_refused(blocks, k):
    with pytest.raises(UserError, match=f"--teacher-top-k {k} must be between 1 and the"):
        key_of(blocks, k=k)


def test_an_unknown_dtype_is_refused(blocks):
    with pytest.raises(UserError, match="'int8' is not known; choose float16, float32"):
        key_of(blocks, dtype="int8")


def test_a_teacher_of_another_vocabulary_is_refused(teacher, blocks, tmp_path):
    key = dataclasses.replace(key_of(blocks), vocabulary=VOCABULARY + 1)
    with pytest.raises(UserError, match=f"vocabulary of {VOCABULARY} and the model one of"):
        write_cache(tmp_path, key, blocks, teacher, batch_size=8)


def test_the_index_names_what_it_is_of(written):
    folder, key = written
    index = json.loads((folder / FILE_NAME).read_text())
    assert index["format"] == "lrqat-teacher-cache"
    assert {name: index[name] for name in dataclasses.asdict(key)} == dataclasses.asdict(key)
    assert list(index["shards"]) == ["shard-00000.safetensors"]
