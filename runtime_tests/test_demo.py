"""The demonstration on a model made from scratch, from end to end."""

import json

import gguf
import pytest

from lrqat.cli import demo


@pytest.mark.slow
def test_offline(tmp_path, capsys):
    options = ["--base-steps", "20", "--block-steps", "2", "--steps", "2", "--windows", "2"]
    options += ["--output", str(tmp_path)]
    assert demo.main(["--offline", "--json", *options]) == 0
    proofs, table = (json.loads(line) for line in capsys.readouterr().out.splitlines()[-2:])
    assert all(all(proof["verdicts"].values()) for proof in proofs["files"])
    base, theirs, ours = table["rows"]
    assert base["kl"] is None
    assert theirs["bytes"] == ours["bytes"] < base["bytes"]
    assert 0 <= ours["kl"] < 1
    files = [tmp_path / "fused-q4_0" / f"{name}-q4_0.gguf" for name in ("llama.cpp", "model")]
    tensors = [gguf.GGUFReader(file).tensors for file in files]
    same = [a.name for a, b in zip(*tensors, strict=True) if a.data.tobytes() == b.data.tobytes()]
    assert all("norm" in name for name in same)  # every matrix was rounded anew
    assert (tmp_path / "base" / "model.safetensors").is_file()
