"""Manners of the commands: what is meant, what comes next, and how it is shown."""

import io
import re
import shlex

import pytest
from rich.console import Console

from lrqat.cli import command, doctor, evaluate, export, inspect, parity, plan, train
from lrqat.cli.next_steps import after_export, after_training
from lrqat.errors import UserError

PARSERS = {
    "train": train.build_parser, "evaluate": evaluate.build_parser, "plan": plan.build_parser,
    "parity": parity.build_parser, "inspect": inspect.build_parser, "doctor": doctor.build_parser,
    "export": export.build_parser,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "line", "said"),
    [
        ("train", "--gird q4_0", "unknown option --gird: did you mean --grid"),
        ("train", "--step 3", "did you mean --steps"),
        ("train", "--batch 3", "did you mean --batch-size"),
        ("train", "--batch=3", "did you mean --batch-size"),
        ("export", "x --fromat gguf", "did you mean --format"),
        ("export", "x", "required: --format"),
        ("plan", "m --data d --for cud", "did you mean cuda"),
        ("train", "--steps many", "invalid int value"),
        ("evaluate", "x --data d --window 3", "did you mean --windows"),
    ],
)
def test_what_was_meant_is_named_and_nothing_is_shortened(name, line, said):
    with pytest.raises(UserError) as refused:
        PARSERS[name]().parse_args(line.split())
    assert said in str(refused.value)


def test_values_that_look_like_options_are_left_alone():
    args = train.build_parser().parse_args(["--keep", "a", "--data", "b", "--", "run.yaml"])
    assert (args.keep, args.data, args.run) == (["a"], ["b"], "run.yaml")


def test_help_begins_with_what_matters_and_names_the_rest(capsys):
    with pytest.raises(SystemExit) as done:
        train.build_parser().parse_args(["--help"])
    assert not done.value.code
    short = capsys.readouterr().out
    first, _, rest = short.partition("more options:")
    for flag in ("--model", "--data", "--grid", "--output", "--steps"):
        assert f"  {flag} " in first
    assert "--rank" not in first
    assert "--rank" in rest
    assert "--help-all" in rest
    with pytest.raises(SystemExit):
        train.build_parser().parse_args(["--help-all"])
    full = capsys.readouterr().out
    assert len(full) > 4 * len(short)
    assert "columns of A, rows of B" in full


def test_names_stand_before_options():
    usage = {name: parser().format_usage() for name, parser in PARSERS.items()}
    assert " CHECKPOINT FILE ... --data DATA [options]" in usage["parity"]
    assert " CHECKPOINT --format FORMAT [options]" in usage["export"]
    assert " [RUN.yaml] [options]" in usage["train"]
    assert " MODEL --data SOURCE [options]" in usage["plan"]


def test_the_next_command_has_the_paths_of_this_one(tmp_path):
    folder = tmp_path / "a run"
    folder.mkdir()
    line = after_training(folder, in_gguf=True)
    assert shlex.split(line) == ["lrqat", "export", str(folder), "--format", "gguf"]
    assert shlex.split(after_export(folder, "m.gguf"))[-2:] == ["--data", "TEXT"]
    text = tmp_path / "valid.txt"
    text.write_text("x")
    (folder / "checkpoints").mkdir()
    run = folder / "checkpoints" / "run.yaml"
    run.write_text(f"eval-data: {text}\ndata: [a.jsonl]\n")
    assert shlex.split(after_export(folder, "m.gguf"))[-1] == str(text)
    run.write_text("nonsense: [")
    assert shlex.split(after_export(folder, "m.gguf"))[-1] == "TEXT"


def test_a_run_says_what_comes_next_and_what_it_writes(tiny_model, text_file, tmp_path, capfd):
    arguments = ["--model", tiny_model, "--data", text_file, "--output", tmp_path / "x"]
    assert train.main([str(a) for a in (*arguments, "--dry-run")]) == 0
    said = capfd.readouterr().out
    assert "next: the same without --dry-run" in said
    assert f"MB to {tmp_path / 'x'}, with" in said
    saved = [*arguments, "--dry-run", "--save-config", tmp_path / "a run.yaml"]
    assert train.main([str(a) for a in saved]) == 0
    # The same again would not overwrite the file.
    assert f"next: lrqat train '{tmp_path / 'a run.yaml'}'" in capfd.readouterr().out
    assert re.search(r"about .* to come \(measuring .*, blocks .*, steps ", said)


def test_no_color_is_obeyed(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True

    def shown():
        terminal.truncate(0)
        Console(file=terminal, force_terminal=True, highlight=False).print("[yellow]warning:[/] x")
        return terminal.getvalue()

    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[33m" in shown()
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[33m" not in shown()
    assert not command.Output(as_json=False).console.color_system
