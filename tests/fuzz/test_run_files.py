"""Runs as YAML that nobody vouches for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrqat.training.config import TrainConfig
from lrqat.training.run_file import format_run, parse_run, read_run
from tests.fuzz.harness import altered_bytes, fuzz, outcome

REQUIRED = {"model": "m", "data": "d", "output": "o"}
CORPUS = [
    format_run(TrainConfig(**REQUIRED)).encode(),
    b"model: a\ndata: [b.jsonl:0.8, c.txt]\ngrid: q4_0\noutput: o\nlearning_rate: 1e-4\n"
    b"gradient-checkpointing: yes\nblock-steps: 10\nseed: 31\n",
    b"model: a\ndata: [b.jsonl:0.8, c.txt]\ngrid: &g q4_0\noutput: *g\nseed: 0x1F\n",
]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "run.yaml"


def read_and_repeat(path):
    config = TrainConfig(**REQUIRED | read_run(path)).resolved()
    assert TrainConfig(**parse_run(format_run(config))) == config
    return config


@fuzz(20)
@given(data=st.data())
def test_run_files(path, data):
    path.write_bytes(data.draw(altered_bytes(CORPUS)))
    outcome(lambda: read_and_repeat(path))
