"""Half of what torchrun sets in the environment."""

import pytest

from lrqat.errors import UserError
from lrqat.training import processes

ALL = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2, and lacks RANK"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK=0, and lacks RANK"),
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK=x, which is no number"),
    ],
)
def test_half_a_launch_is_one_message(given, said, monkeypatch):
    for name in ALL:
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=said):
        processes.join("cpu")


def test_where_to_meet_alone_is_no_launch(monkeypatch):
    """Clusters set that for every process."""
    for name in ALL[:3]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    processes.join("cpu")
    assert processes.count() == 1
