"""A teacher's cache that was stopped, and shards that were damaged meanwhile."""

import json

import pytest
from safetensors.torch import load_file, save_file

from lrqat.errors import DataError, OutputError
from lrqat.training.objectives import teacher_cache
from lrqat.training.objectives.teacher_cache import (
    FILE_NAME,
    TeacherCache,
    is_complete,
    write_cache,
)
from tests.support.teacher_caches import key_of


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
