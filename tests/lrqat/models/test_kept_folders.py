"""The cache of dequantised models does not grow for ever."""

import os
import time

from lrqat.models.kept_folders import note_use, remove_oldest

DAY = 86_400


def made(cache, name, days, size=100):
    folder = cache / name
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(size - 2))
    (folder / "config.json").write_text("{}")
    os.utime(folder / "config.json", (time.time() - days * DAY,) * 2)
    return folder


def test_what_was_not_used_for_longest_goes(tmp_path):
    old, older, new = (made(tmp_path, name, days) for name, days in (("a", 3), ("b", 9), ("c", 2)))
    (tmp_path / "mine").mkdir()
    assert remove_oldest(tmp_path, "config.json", 300) == []
    assert remove_oldest(tmp_path, "config.json", 299) == [older]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "c", "mine"]
    note_use(old / "config.json")
    assert remove_oldest(tmp_path, "config.json", 150) == [new]
    assert old.is_dir()


def test_what_may_be_in_use_stays_and_what_a_killed_process_left_goes(tmp_path):
    big = made(tmp_path, "big", 0.5, size=1000)
    made(tmp_path, ".going-x", 20)
    assert remove_oldest(tmp_path, "config.json", 10) == []
    assert list(tmp_path.iterdir()) == [big]
