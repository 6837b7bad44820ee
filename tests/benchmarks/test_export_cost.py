"""What exports cost, on a tiny model with stand-ins for llama.cpp's tools."""

import json
import sys

import pytest

from benchmarks import bench, random_model
from benchmarks.export_cost import measure_exports
from benchmarks.random_fused import write_random_fused
from lrqat.errors import GridError, UserError

# Long enough at its largest for a sample to be taken.
_CONVERT = """
import sys, time
blob = bytearray(300 << 20)
time.sleep(0.5)
open(sys.argv[sys.argv.index("--outfile") + 1], "wb").write(blob[:1000])
"""
_QUANTIZE = """#!{python}
import sys
assert sys.argv[3] == "Q4_0"
open(sys.argv[2], "wb").write(open(sys.argv[1], "rb").read()[:500])
"""


@pytest.fixture
def upstream(tmp_path):
    tree, quantize = tmp_path / "llama.cpp", tmp_path / "llama-quantize"
    tree.mkdir()
    (tree / "convert_hf_to_gguf.py").write_text(_CONVERT)
    quantize.write_text(_QUANTIZE.format(python=sys.executable))
    quantize.chmod(0o755)
    return tree, quantize


def test_the_command_compares_with_upstream(upstream, tmp_path, capfd):
    folder = tmp_path / "work"
    folder.mkdir()
    tree, quantize = map(str, upstream)
    arguments = ["export", "--like", "tiny", "--folder", str(folder), "--json"]
    assert bench.main([*arguments, "--llama-cpp", tree, "--llama-quantize", quantize]) == 0
    found = json.loads(capfd.readouterr().out)["results"]
    costs = found["costs"]
    assert list(costs) == ["lrqat", "convert", "quantize"]
    assert [costs[name]["bytes"] for name in ("convert", "quantize")] == [1000, 500]
    assert costs["lrqat"]["bytes"] > found["weights"] / 2
    assert all(cost["cpu_seconds"] > 0 for cost in costs.values())
    slower = costs["convert"]["seconds"] + costs["quantize"]["seconds"]
    assert found["ratios"]["seconds"] == pytest.approx(slower / costs["lrqat"]["seconds"])
    assert not list(folder.iterdir())
    if costs["lrqat"]["peak_bytes"]:
        assert costs["convert"]["peak_bytes"] > 300 << 20


def test_a_contender_that_fails_says_why(fused_checkpoint, upstream, tmp_path):
    tree, quantize = upstream
    (tree / "convert_hf_to_gguf.py").write_text("raise SystemExit('no such model')")
    with pytest.raises(UserError, match="no such model"):
        measure_exports(fused_checkpoint, tmp_path, tree, quantize)
    assert not list(tmp_path.glob("*.gguf"))
    assert not list(tmp_path.glob("*.log"))


def test_only_plain_grids_are_random(tmp_path):
    from transformers import LlamaConfig

    config = LlamaConfig(**random_model.SHAPES["tiny"])
    with pytest.raises(GridError, match="q4_k"):
        write_random_fused(config, tmp_path / "x", grid="q4_k")
