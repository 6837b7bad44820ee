"""Runs as files: what is read is what was written; an unknown key names the nearest."""

import pytest
import yaml

from lrqat.cli import train
from lrqat.cli.train_options import config_from
from lrqat.errors import UserError
from lrqat.training.config import TrainConfig
from lrqat.training.run_file import format_run, parse_run, read_run, write_run
from tests.support.commands import last_json
from tests.support.paths import ROOT

GIVEN = {"model": "m", "data": "d", "output": "o"}
RUNS = [
    {},
    {"data": ("a.jsonl:0.8", "b.txt:0.2"), "keep": ("a: b", "#c"), "steps": 7},
    {"learning_rate": 1e-3, "gradient_checkpointing": True, "for_": "cuda", "target_bits": 4.5},
    {"setting": "4-8-8", "grid": "int4-channel", "stages": "model", "alpha": 3.0},
    {"streamed": True, "imatrix": "null", "model": "~/ö: x", "phi": "bf16"},
]


def config_of(line):
    return config_from(train.build_parser().parse_args([str(part) for part in line]))


@pytest.mark.parametrize("given", RUNS)
def test_what_is_written_is_the_resolved_run_again(given, tmp_path):
    config = TrainConfig(**GIVEN | given)
    write_run(config, tmp_path / "run.yaml")
    again = TrainConfig(**read_run(tmp_path / "run.yaml"))
    assert again.to_json() == config.to_json()
    assert again.resolved() == config.resolved()
    with pytest.raises(UserError, match="exists"):
        write_run(config, tmp_path / "run.yaml")


def test_another_parser_reads_the_same():
    """PyYAML's own loader."""
    loaded = yaml.safe_load(format_run(TrainConfig(**GIVEN | {"data": ("a", "b")})))
    assert (loaded["data"], loaded["batch-size"], loaded["streamed"]) == (["a", "b"], 4, False)


def test_options_count_more_than_the_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ndata: [a, b]\nsteps: 9\ngradient_checkpointing: yes\nkeep: x\n")
    base = config_of([path, "--output", "o"])
    assert (base.steps, base.keep, base.gradient_checkpointing) == (9, ("x",), True)
    line = [path, "--output", "o", "--steps", 3, "--no-gradient-checkpointing", "--data", "c"]
    over = config_of(line)
    assert (over.steps, over.gradient_checkpointing, over.data) == (3, False, "c")
    with pytest.raises(UserError, match="a run needs --output"):
        config_of([path])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stpes: 3", "did you mean steps"),
        ("steps: many", "must be a whole number"),
        ("learning-rate: [1]", "must be one word"),
        ("streamed: perhaps", "must be true or false"),
        ("steps: 1\nsteps: 2", "occurs twice"),
        ("batch-size: 1\nbatch_size: 2", "occurs twice"),
        ("data: [a, {b: c}]", "must be one word"),
        ("- a", "must be a mapping"),
        ("a: [", "no YAML"),
        ("", "must be a mapping"),
        ("model: !!python/object/apply:os.system ['x']", "must be one word"),
        ("[" * 5000, "nested too deeply"),
        ("resume: auto", "unknown key 'resume'"),
    ],
)
def test_what_is_no_run_is_refused(text, said, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read_run(path)


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "large.yaml").write_text("#" * (1 << 17))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    for name in ("large.yaml", "binary.yaml", "none.yaml", ""):
        with pytest.raises(UserError):
            read_run(tmp_path / name)


def test_an_empty_value_is_the_default():
    assert parse_run("recipe:\nsteps: 3") == {"steps": 3}


CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_file_of_the_folder_is_a_run(path, tiny_model, text_file, tmp_path, capfd):
    shown = (ROOT / "docs" / "run-files.md").read_text(encoding="utf-8")
    assert f"`configs/{path.name}`" in shown
    arguments = [path, "--model", tiny_model, "--data", text_file, "--output", tmp_path / "run"]
    # A text has no answers; the small model is too short for the lengths of the files.
    arguments += ["--loss-on", "auto", "--sequence-length", 64, "--dry-run", "--json"]
    capfd.readouterr()
    assert train.main([str(part) for part in arguments]) == 0
    assert last_json(capfd)["quantized"]


def test_a_run_leaves_its_settings_and_they_repeat_it(tiny_model, text_file, tmp_path, capfd):
    small = ["--batch-size", 2, "--sequence-length", 32, "--context", 64, "--eval-windows", 2]
    small += ["--rank", 4, "--steps", 2, "--stages", "model", "--importance-tokens", 64]
    paths = ["--model", tiny_model, "--data", text_file, "--output", tmp_path / "a"]
    kept = tmp_path / "kept.yaml"
    line = [*paths, *small, "--save-config", kept]
    assert train.main([str(part) for part in line]) == 0
    written = tmp_path / "a" / "checkpoints" / "run.yaml"
    assert written.read_text() == kept.read_text()
    assert train.main([str(written), "--output", str(tmp_path / "b")]) == 0
    weights = [(tmp_path / run / "model.safetensors").read_bytes() for run in "ab"]
    assert weights[0] == weights[1]
    with pytest.raises(UserError, match="--overwrite"):
        train.main([str(written)])
