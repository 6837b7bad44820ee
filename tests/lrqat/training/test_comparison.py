import json
import shutil

import pytest

from lrqat.cli import compare
from lrqat.errors import UserError
from lrqat.layers.methods import METHODS
from lrqat.training.comparison import compare_methods
from lrqat.training.config import TrainConfig


@pytest.fixture
def options(tiny_model, text_file, tmp_path):
    values = {
        "model": tiny_model, "data": text_file, "eval-data": text_file, "output": tmp_path / "out",
        "steps": 2, "stages": "model", "batch-size": 1, "sequence-length": 32, "rank": 4,
        "context": 32,
        "eval-windows": 2, "teacher": "self", "importance-tokens": 128,
    }  # fmt: skip
    flags = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return [*flags, "--grids", "q4_0", "int2-g32", "--methods", "rtn", "lr-qat"]


def test_the_table_has_a_row_for_every_run_and_goes_on_where_it_stopped(options, tmp_path, capsys):
    assert compare.main([*options, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["runs"]
    assert [(r["grid"], r["method"]) for r in rows] == [
        ("q4_0", "rtn"), ("q4_0", "lr-qat"), ("int2-g32", "rtn"), ("int2-g32", "lr-qat"),
    ]  # fmt: skip
    assert rows[0]["kl"] < rows[2]["kl"], "two bits are worse than four"
    table = (tmp_path / "out" / "comparison.md").read_text()
    assert f"{rows[3]['kl']:.5f}" in table
    assert (tmp_path / "out" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    kept = tmp_path / "out" / "q4_0-lr-qat" / "lrqat.json"
    stamp = kept.stat().st_mtime_ns
    shutil.rmtree(tmp_path / "out" / "int2-g32-rtn")
    assert compare.main([*options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == [
        {**row, "seconds": pytest.approx(row["seconds"], abs=60)} for row in rows
    ]
    assert kept.stat().st_mtime_ns == stamp


def test_a_comparison_without_a_teacher_or_with_a_wrong_name_is_refused(tiny_model, text_file):
    config = TrainConfig(
        model=str(tiny_model), data=str(text_file), output="nowhere", teacher="none"
    )
    with pytest.raises(UserError, match="needs --teacher"):
        compare_methods(config, ["q4_0"], ["rtn"])


def test_a_comparison_takes_a_setting_for_all_its_runs(options, capsys):
    shared = options[: options.index("--grids")]
    asked = ["--setting", "4-8-8", "--grids", "q4_0", "--methods", "rtn", "scales", "--json"]
    assert compare.main([*shared, *asked]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 2


def test_all_methods_are_compared_by_default(options):
    shared = options[: options.index("--methods")]
    assert compare.build_parser().parse_args(shared).methods == list(METHODS)
