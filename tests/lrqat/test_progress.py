"""Progress in a log file: whole lines, and few of them."""

import io

import tqdm.auto

from lrqat import progress


def test_a_log_gets_few_whole_lines(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    bar = progress.tqdm(range(5000), desc="blocks", unit="block")
    for index in bar:
        bar.set_postfix_str(f"error {index}")
    said = log.getvalue()
    assert isinstance(bar, progress.LogLines)
    assert "\r" not in said
    assert said.count("\n") == 1
    assert said.startswith("blocks: 100%")
    assert "5000/5000" in said
    assert said.endswith("error 4999]\n")


def test_time_brings_another_line(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    with progress.tqdm(total=10, desc="steps", mininterval=0) as bar:
        bar.mininterval = 0
        for _ in range(10):
            bar.update()
    assert 2 <= log.getvalue().count("\n") <= 11
    with progress.tqdm(total=3, disable=True) as bar:
        bar.update()
    assert "3" not in log.getvalue().splitlines()[-1].split("/")[0]


def test_a_terminal_gets_a_line_that_moves(monkeypatch):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    assert isinstance(progress.tqdm([]), tqdm.auto.tqdm)


def test_two_bars_at_once_move_nothing_in_a_log(monkeypatch):
    log = io.StringIO()
    monkeypatch.setattr("sys.stderr", log)
    with progress.tqdm(desc="above", total=2) as above:
        with progress.tqdm(desc="below", total=2) as below:
            below.mininterval = 0
            below.update()
        above.update(2)
    lines = log.getvalue().splitlines()
    assert {line.split(":")[0] for line in lines} == {"above", "below"}
    assert "\x1b" not in log.getvalue()
