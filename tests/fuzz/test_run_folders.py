"""What a run keeps, states, finished blocks and teacher caches, that nobody vouches for."""

import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrqat.checkpoint.publishing import STATES
from lrqat.errors import CheckpointError, DataError, UserError
from lrqat.training.config import TrainConfig
from lrqat.training.data.blocks import TokenBlocks
from lrqat.training.objectives.teacher_cache import FILE_NAME, CacheKey, TeacherCache
from lrqat.training.objectives.teacher_shards import is_written, write_shard
from lrqat.training.states import folder as states
from lrqat.training.states.resume import find_state, record_run
from lrqat.training.states.sealed import read_sealed, write_sealed
from tests.fuzz.harness import altered_bytes, altered_json, fuzz, outcome

ANY = st.data()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


CONFIG = TrainConfig(model="model", data="data", output="output")


@pytest.fixture(scope="module")
def saved(folder):
    record_run(folder / STATES, CONFIG)

    def write(state):
        for name in states.FILES:
            (state / name).write_bytes(b'{"a": 1}' + name.encode())

    return states.write_state(folder / STATES, 2, write)


@fuzz(60)
@given(data=ANY)
def test_states(saved, data):
    path = data.draw(st.sampled_from([*sorted(saved.iterdir()), saved.parent / "run.json"]))
    good = path.read_bytes()
    try:
        path.write_bytes(altered := data.draw(altered_bytes([good])))
        found = outcome(lambda: find_state(saved.parent, str(saved), CONFIG))
        listed = path.name in states.FILES
        assert not listed or altered == good or isinstance(found, UserError)
    finally:
        path.write_bytes(good)


def test_strange_files_in_a_state_are_not_read(saved):
    """Pickles that the Trainer would look for."""
    (saved / "scaler.pt").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert find_state(saved.parent, str(saved), CONFIG) == saved
    (saved / "scaler.pt").unlink()


@pytest.fixture(scope="module")
def shard(folder):
    blocks = TokenBlocks(np.arange(24, dtype=np.int32), 4)
    key = CacheKey.of(blocks, teacher="tiny", k=2, vocabulary=61, dtype="float32")
    name, part = next(iter(key.shards()))
    made = folder / "cache"
    made.mkdir()
    logprobs = torch.zeros(len(part), 4, 2)
    ids = torch.zeros(len(part), 4, 2, dtype=torch.int32)
    write_shard(made / name, part, logprobs, ids, key)
    return made / name, part, key


@fuzz(60)
@given(data=ANY)
def test_teacher_shards(shard, data):
    path, part, key = shard
    good = path.read_bytes()
    try:
        path.write_bytes(altered := data.draw(altered_bytes([good])))
        found = outcome(lambda: is_written(path, part, key))
        assert found is not True or altered == good
    finally:
        path.write_bytes(good)


@fuzz(50)
@given(data=ANY)
def test_indices_of_teacher_caches(shard, data):
    path, _, key = shard
    index = {**key.to_json(), "shards": {path.name: "ab" * 32}}
    (path.parent / FILE_NAME).write_text(json.dumps(data.draw(altered_json([index]))))
    outcome(lambda: TeacherCache.open(path.parent, key))


@pytest.fixture(scope="module")
def sealed(folder):
    path = folder / "sealed" / "block.safetensors"
    path.parent.mkdir()
    write_sealed(path, {"a.phi": torch.ones(2, 3), "a.scale": torch.ones(2)}, {"before": 0.5})
    return path


@fuzz(40)
@given(data=ANY)
def test_no_altered_block_is_taken(sealed, data):
    good, path = sealed.read_bytes(), sealed.with_name("altered.safetensors")
    path.write_bytes(data.draw(altered_bytes([good])))
    found = outcome(lambda: read_sealed(path))
    assert isinstance(found, UserError) or repr(found) == repr(read_sealed(sealed))


def test_a_block_that_lacks_its_hash_is_refused(sealed):
    path = sealed.with_name("unproved.safetensors")
    path.write_bytes(sealed.read_bytes().replace(b"sha256", b"sha257"))
    with pytest.raises(CheckpointError, match="altered or damaged"):
        read_sealed(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_nobody_waits_for_a_pipe_in_a_state_or_a_cache(saved, shard):
    os.rename(saved / states.STATE, saved / "aside")
    os.mkfifo(saved / states.STATE)
    assert states.damage(saved) is not None
    (saved / states.STATE).unlink()
    os.rename(saved / "aside", saved / states.STATE)
    path, _, key = shard
    (path.parent / FILE_NAME).unlink(missing_ok=True)
    os.mkfifo(path.parent / FILE_NAME)
    with pytest.raises(DataError):
        TeacherCache.open(path.parent, key)
