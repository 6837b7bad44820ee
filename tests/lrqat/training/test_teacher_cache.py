"""The cache of a teacher's most likely tokens: what it holds, resuming, and what it refuses."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader

from lrqat.errors import DataError, OutputError
from lrqat.training.data.blocks import TokenBlocks
from lrqat.training.objectives import teacher_cache
from lrqat.training.objectives.losses import CachedTeacher, ModelTeacher, Objective
from lrqat.training.objectives.teacher_cache import (
    FILE_NAME,
    CachedBlocks,
    TeacherCache,
    is_complete,
    write_cache,
)
from tests.support.teacher_caches import BLOCKS, LENGTH, key_of
from tests.support.zoo import VOCABULARY, make


def logprobs_of(teacher, blocks):
    with torch.no_grad():
        ids = torch.from_numpy(blocks.tokens.astype(np.int64))
        return teacher(input_ids=ids).logits.log_softmax(-1)


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 1e-5), ("float16", 0.004)])
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_every_block_gets_its_own_most_likely_tokens(
    teacher, blocks, tmp_path, two_a_shard, dtype, atol, batch_size
):
    key = key_of(blocks, dtype=dtype)
    write_cache(tmp_path, key, blocks, teacher, batch_size=batch_size)
    cache = TeacherCache.open(tmp_path, key)
    values, ids = logprobs_of(teacher, blocks).topk(5)
    for block in range(BLOCKS):
        found, found_ids = cache[block]
        assert (found.dtype, found_ids.dtype) == (getattr(torch, dtype), torch.int32)
        assert torch.equal(found_ids.long(), ids[block])
        torch.testing.assert_close(found.float(), values[block], rtol=0, atol=atol)


def test_the_size_that_the_key_promises_is_the_size_on_disk(teacher, blocks, tmp_path, two_a_shard):
    key = key_of(blocks)
    write_cache(tmp_path, key, blocks, teacher, batch_size=2)
    shards = sorted(path.name for path in tmp_path.glob("shard-*"))
    assert shards == [f"shard-0000{i}.safetensors" for i in range(4)]
    tensors = [t for name in shards for t in load_file(tmp_path / name).values()]
    assert sum(t.numel() * t.itemsize for t in tensors) == key.bytes
    assert sorted(p.name for p in tmp_path.iterdir()) == [*shards, FILE_NAME]


def test_with_the_whole_vocabulary_training_is_that_with_the_teacher(teacher, blocks, tmp_path):
    key = key_of(blocks, k=VOCABULARY)
    write_cache(tmp_path, key, blocks, teacher, batch_size=4)
    rows = CachedBlocks(blocks, TeacherCache.open(tmp_path, key))
    batch = next(iter(DataLoader(rows, batch_size=4)))
    assert {name: tuple(t.shape) for name, t in batch.items()} == {
        "input_ids": (4, LENGTH),
        "teacher_logprobs": (4, LENGTH, VOCABULARY),
        "teacher_ids": (4, LENGTH, VOCABULARY),
    }
    student = make("llama", seed=1)
    cached = Objective(CachedTeacher(), 0.2)(student, **batch)
    direct = Objective(ModelTeacher(teacher), 0.2)(student, batch["input_ids"])
    torch.testing.assert_close(cached, direct)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_fewer_tokens_are_a_lower_bound_that_rises_with_k(teacher, blocks, tmp_path, dtype):
    student = make("llama", seed=1)
    found = []
    for k in (1, 4, 16, VOCABULARY):
        key = key_of(blocks, k=k, dtype=dtype)
        write_cache(tmp_path / str(k), key, blocks, teacher, batch_size=8)
        rows = CachedBlocks(blocks, TeacherCache.open(tmp_path / str(k), key))
        batch = next(iter(DataLoader(rows, batch_size=BLOCKS)))
        with torch.no_grad():
            found.append(Objective(CachedTeacher())(student, **batch).item())
    full = Objective(ModelTeacher(teacher))(student, batch["input_ids"]).item()
    assert 0 < found[0] < found[1] < found[2] < found[3]
    assert found[3] == pytest.approx(full, rel=1e-5 if dtype == "float32" else 2e-3)


def test_workers_of_a_data_loader_read_it(teacher, blocks, tmp_path):
    key = key_of(blocks)
    write_cache(tmp_path, key, blocks, teacher, batch_size=8)
    rows = CachedBlocks(blocks, TeacherCache.open(tmp_path, key))
    loader = DataLoader(rows, batch_size=2, num_workers=1)
    found = torch.cat([batch["teacher_ids"] for batch in loader])
    assert torch.equal(found, torch.stack([row["teacher_ids"] for row in rows]))


class Stopping:
    """Progress that is interrupted before a batch."""

    def __init__(self, after):
        self.after, self.seen = after, 0

    def __call__(self, batches):
        for batch in batches:
            if self.seen == self.after:
                raise KeyboardInterrupt
            self.seen += 1
            yield batch


def test_a_stopped_run_goes_on_at_the_first_missing_shard(teacher, blocks, tmp_path, two_a_shard):
    key = key_of(blocks)
    with pytest.raises(KeyboardInterrupt):
        write_cache(tmp_path / "a", key, blocks, teacher, batch_size=1, progress=Stopping(5))
    assert not is_complete(tmp_path / "a", key)
    with pytest.raises(DataError, match="no complete teacher cache"):
        TeacherCache.open(tmp_path / "a", key)
    kept = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "a").iterdir()}
    assert len(kept) == 2
    rest = Stopping(100)
    write_cache(tmp_path / "a", key, blocks, teacher, batch_size=1, progress=rest)
    assert rest.seen == 3  # of 7 blocks, four were done; the fifth's shard was not whole
    assert all((tmp_path / "a" / name).stat().st_mtime_ns == at for name, at in kept.items())
    write_cache(tmp_path / "b", key, blocks, teacher, batch_size=1)
    for path in (tmp_path / "b").iterdir():
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()


def stopped_and_finished(teacher, blocks, folder):
    """A cache of four shards that was stopped after two, and the files of one that was not."""
    key = key_of(blocks)
    with pytest.raises(KeyboardInterrupt):
        write_cache(folder / "a", key, blocks, teacher, batch_size=1, progress=Stopping(5))
    write_cache(folder / "b", key, blocks, teacher, batch_size=1)
    return key, {path.name: path.read_bytes() for path in (folder / "b").iterdir()}


@pytest.mark.parametrize("at", [-1, -200, -400])
def test_a_shard_that_was_damaged_meanwhile_is_computed_again(
    teacher, blocks, tmp_path, two_a_shard, at
):
    key, right = stopped_and_finished(teacher, blocks, tmp_path)
    path = tmp_path / "a" / "shard-00000.safetensors"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    again = Stopping(100)
    write_cache(tmp_path / "a", key, blocks, teacher, batch_size=1, progress=again)
    assert again.seen == 5, "two blocks of the damaged shard, three that were missing"
    assert right == {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}


def test_a_shard_in_the_place_of_another_is_computed_again(teacher, blocks, tmp_path, two_a_shard):
    key, right = stopped_and_finished(teacher, blocks, tmp_path)
    first, second = (tmp_path / "a" / f"shard-0000{n}.safetensors" for n in range(2))
    second.write_bytes(first.read_bytes())
    write_cache(tmp_path / "a", key, blocks, teacher, batch_size=1)
    assert right == {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}


def test_a_shard_that_proves_nothing_is_computed_again(teacher, blocks, tmp_path, two_a_shard):
    """One of an earlier lrqat, or whose entries have another shape."""
    key, right = stopped_and_finished(teacher, blocks, tmp_path)
    said = {"lrqat": json.dumps(key.to_json())}
    for number, change in enumerate([lambda t: t, lambda t: t[:1]]):
        path = tmp_path / "a" / f"shard-0000{number}.safetensors"
        tensors = {name: change(t).contiguous() for name, t in load_file(path).items()}
        save_file(tensors, path, metadata=said)
    write_cache(tmp_path / "a", key, blocks, teacher, batch_size=1)
    assert right == {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}


def test_a_disk_that_gives_back_other_bytes_is_not_recorded(
    teacher, blocks, tmp_path, two_a_shard, monkeypatch
):
    def harm(path, *rest):
        write(path, *rest)
        data = bytearray(path.read_bytes())
        data[-3] ^= 4
        path.write_bytes(data)

    write = teacher_cache.write_shard
    monkeypatch.setattr(teacher_cache, "write_shard", harm)
    with pytest.raises(OutputError, match="not what was written there a moment ago"):
        write_cache(tmp_path, key_of(blocks), blocks, teacher, batch_size=1)
    assert not (tmp_path / FILE_NAME).exists()


def test_a_complete_cache_needs_no_teacher(teacher, blocks, tmp_path):
    key = key_of(blocks)
    assert not is_complete(tmp_path, key)
    write_cache(tmp_path, key, blocks, teacher, batch_size=8)
    assert is_complete(tmp_path, key)
    write_cache(tmp_path, key, blocks, None, batch_size=8)


@pytest.mark.parametrize(
    ("name", "value"),
    [("teacher", "another"), ("k", 4), ("dtype", "float16"), ("tokens_sha256", "0" * 64)],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_cache_of_something_else_is_refused(teacher, blocks, tmp_path, name, value, finished):
    key = key_of(blocks)
    write_cache(tmp_path, key, blocks, teacher, batch_size=8)
    if not finished:
        (tmp_path / FILE_NAME).unlink()
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    other = dataclasses.replace(key, **{name: value})
    expected = f"with {name} {getattr(key, name)!r}, and this run needs {value!r}; give another"
    with pytest.raises(DataError, match=expected):
        write_cache(tmp_path, other, blocks, teacher, batch_size=8)
    assert before == {p.name: p.read_bytes() for p in tmp_path.iterdir()}


def test_one_changed_token_is_another_text(blocks):
    tokens = blocks.tokens.copy()
    tokens[-1, -1] += 1
    other = TokenBlocks(tokens.reshape(-1), LENGTH)
    assert key_of(other).tokens_sha256 != key_of(blocks).tokens_sha256
    assert key_of(TokenBlocks(blocks.tokens.reshape(-1), 6)) != key_of(blocks)
