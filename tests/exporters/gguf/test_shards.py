"""Models in several files."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from exporters import gguf
from exporters.gguf import writer as writing
from exporters.gguf.file.header import GgufFileError, read_header
from exporters.gguf.file.shards import read_model, shard_paths, split_sizes
from lrqat.checkpoint.manifest import sha256_of
from lrqat.checkpoint.reader import Checkpoint
from lrqat.errors import ExportRefusedError, OutputError, UserError

SIZE = 120_000


@pytest.fixture
def checkpoint(fused_checkpoint):
    return Checkpoint.open(fused_checkpoint)


@pytest.fixture
def plan(checkpoint):
    return gguf.plan(checkpoint, gguf.Options(split_max_size=str(SIZE)))


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("text", ["", "0", "G", "-1M", "2T", "1e9", "0M", "9" * 20])
def test_what_is_no_size(text):
    with pytest.raises(UserError, match=r"--split-max-size .* is no size"):
        gguf.Options(split_max_size=text)


def test_tensors_fill_files_in_order():
    assert split_sizes([4, 4, 4, 4], None) == [4]
    assert split_sizes([4, 4, 4, 4], 8) == [2, 2]
    assert split_sizes([4, 9, 4, 4], 8) == [1, 1, 2]
    assert split_sizes([9, 9], 1) == [1, 1]
    with pytest.raises(ExportRefusedError, match="too many"):
        split_sizes([1] * 70_000, 1)


def test_every_part_is_a_file_that_others_read(plan, checkpoint, tmp_path):
    report = gguf.write(plan, tmp_path / "model.gguf")
    count = len(plan.shards)
    assert count > 3
    paths = shard_paths(tmp_path / "model.gguf", count)
    assert names(tmp_path) == [path.name for path in paths]
    assert paths[0].name == f"model-00001-of-{count:05}.gguf"
    assert report.path == str(paths[0])
    assert report.bytes == sum(path.stat().st_size for path in paths)
    assert report.files == {path.name: sha256_of(path) for path in paths}
    assert report.sha256 == sha256_of(paths[0])
    found = []
    for no, path in enumerate(paths):
        reader = GGUFReader(path)
        said = {
            key: (field.contents(), field.types[0].name)
            for key, field in reader.fields.items()
            if key.startswith("split.")
        }
        assert said == {
            "split.no": (no, "UINT16"),
            "split.count": (count, "UINT16"),
            "split.tensors.count": (len(plan.tensors), "INT32"),
        }
        assert ("tokenizer.ggml.tokens" in reader.fields) == (no == 0)
        sizes = [-(-int(tensor.n_bytes) // 32) * 32 for tensor in reader.tensors]
        assert len(sizes) == 1 or sum(sizes) <= SIZE
        found += [tensor.name for tensor in reader.tensors]
    assert found == [tensor.source.name for tensor in plan.tensors]
    assert not any(gguf.verify(paths[0], checkpoint).values())
    assert f"{count} files" in "\n".join(plan.summary())
    assert plan.to_json()["files"] == count


def test_the_parts_hold_what_one_file_holds(plan, checkpoint, tmp_path):
    parts = read_model(Path(gguf.write(plan, tmp_path / "model.gguf").path))
    gguf.write(gguf.plan(checkpoint), tmp_path / "whole.gguf")
    whole = read_header(tmp_path / "whole.gguf")
    assert list(parts.tensors) == list(whole.tensors)
    for name in whole.tensors:
        assert (parts.tensors[name].read() == whole.tensors[name].read()).all()
    said = {k: v for k, v in parts.metadata.items() if not k.startswith("split.")}
    np.testing.assert_equal(said, whole.metadata)


def test_one_file_is_enough(checkpoint, tmp_path):
    plan = gguf.plan(checkpoint, gguf.Options(split_max_size="1G"))
    gguf.write(plan, tmp_path / "model.gguf")
    assert names(tmp_path) == ["model.gguf"]
    assert "split.count" not in read_header(tmp_path / "model.gguf").metadata


def test_the_name_of_a_part_is_as_good(plan, tmp_path):
    gguf.write(plan, tmp_path / "m-00001-of-00099.gguf")
    assert names(tmp_path)[0] == f"m-00001-of-{len(plan.shards):05}.gguf"


def test_the_same_bytes_again_and_no_replacing_unasked(plan, tmp_path):
    first = gguf.write(plan, tmp_path / "model.gguf")
    with pytest.raises(OutputError, match="exists"):
        gguf.write(plan, tmp_path / "model.gguf")
    (tmp_path / names(tmp_path)[0]).unlink()
    with pytest.raises(OutputError, match="exists"):  # the others are somebody's too
        gguf.write(plan, tmp_path / "model.gguf")
    again = gguf.write(plan, tmp_path / "model.gguf", overwrite=True)
    assert again == first


def test_a_failing_write_leaves_the_old_parts(plan, tmp_path, monkeypatch):
    gguf.write(plan, tmp_path / "model.gguf")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    original = writing.packed_pieces

    def flip(checkpoint, source, kind):
        data = np.concatenate(list(original(checkpoint, source, kind)))
        if source.name == "blk.1.ffn_down.weight":
            data[3, 5] ^= 1
        return [data]

    monkeypatch.setattr(writing, "packed_pieces", flip)
    with pytest.raises(OutputError, match=r"blk\.1\.ffn_down"):
        gguf.write(plan, tmp_path / "model.gguf", overwrite=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_first_part_gets_its_name_last(plan, tmp_path, monkeypatch):
    """Whatever stops the renaming, no first part is left beside others that are not its own.

    And whoever reads next finishes it.
    """
    gguf.write(plan, tmp_path / "model.gguf")
    first = names(tmp_path)[0]
    done = []
    original = os.replace

    def fail(source, target):
        if len(done) == 2:
            raise OSError(28, "No space left")
        done.append(target.name)
        original(source, target)

    monkeypatch.setattr("lrqat.atomic_files.files.os.replace", fail)
    with pytest.raises(OutputError, match="disk is full"):
        gguf.write(plan, tmp_path / "model.gguf", overwrite=True)
    assert first not in done
    assert first not in names(tmp_path)
    assert len(list(tmp_path.glob(".*"))) == 1, "what is new waits for its names"
    monkeypatch.undo()
    assert not any(gguf.verify(tmp_path / first, plan.checkpoint).values())
    assert names(tmp_path) == [path.name for path in shard_paths(tmp_path / "model.gguf", 5)]


@pytest.fixture
def parts(plan, tmp_path):
    gguf.write(plan, tmp_path / "model.gguf")
    return sorted(tmp_path.iterdir())


def test_the_first_part_is_the_one_to_give(parts):
    with pytest.raises(GgufFileError, match=f"give {parts[0].name}"):
        read_model(parts[1])


def test_a_missing_part_is_named(parts):
    parts[2].unlink()
    with pytest.raises(GgufFileError, match=parts[2].name):
        read_model(parts[0])


def test_parts_in_the_wrong_order_are_refused(parts):
    shutil.copy(parts[1], parts[2])
    with pytest.raises(GgufFileError, match="is not part 3"):
        read_model(parts[0])


def test_a_first_part_under_another_name_is_refused(parts):
    renamed = parts[0].with_name("other.gguf")
    parts[0].rename(renamed)
    with pytest.raises(GgufFileError, match=r"give other-00001-of-"):
        read_model(renamed)


def test_parts_of_another_model_are_noticed(parts, make_fused, checkpoint):
    other = Checkpoint.open(make_fused("int4-g128"))
    assert any(gguf.verify(parts[0], other).values())
    assert not any(gguf.verify(parts[0], checkpoint).values())
