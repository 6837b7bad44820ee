"""Kill a command at random moments, look what is there, run it again, and look once more.

Right is: whoever comes after the kill finds the complete old artefact or the complete new one (of
nothing old: nothing), and after the same command has run to its end there is the new one, the bytes
of a run that nobody disturbed, and nothing else that was not there before.
"""

import json
import os
import random
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from lrqat.checkpoint.manifest import sha256_of
from lrqat.checkpoint.publishing import REPORT
from tests.kills.nursery import PHASES
from tests.support.paths import ROOT

_STATES = "checkpoints"  # of a run; what is in there is judged by what is resumed from it
_UNDISTURBED = 2  # runs that nobody kills, before the others
_TRIES = 20  # moments that are drawn until one comes before the end of its run
_RECENT = 5  # runs whose median is the time of the next: other work on the machine comes and goes


@dataclass(frozen=True)
class Case:
    """A command, in a folder of its own.

    Attributes:
        command: arguments of `lrqat`, with {place} for the folder.
        target: what it publishes there, as `lrqat inspect` takes it.
        mark: of a folder, the file that makes it valid.
        before: the same for what is there before; empty if nothing is.
        resumes: whether `--resume auto` continues it.
    """

    command: str
    target: str
    mark: str = ""
    before: str = ""
    resumes: bool = False


class Moment(NamedTuple):
    """When a run is killed: so long after the beginning of a phase."""

    seconds: float
    phase: str

    def __str__(self):
        return f"{self.seconds:.4f} s of {self.phase}"


@dataclass
class Count:
    """What was found after the kills of a case.

    Attributes:
        seconds: before the end of an undisturbed run each of `PHASES` began; of the last runs.
        moments: when a run was killed, and what a reader found then.
        found: by what a reader found ("old", "new", "torn") how often.
        finished: how often "new" was there only because the reader finished it.
        left: how often there was something unfinished beside the artefact right after the kill.
        wrong: what was not right, in words.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    moments: list[tuple["Moment", str]] = field(default_factory=list)
    found: dict[str, int] = field(default_factory=lambda: {"old": 0, "new": 0, "torn": 0})
    finished: int = 0
    left: int = 0
    wrong: list[str] = field(default_factory=list)


class Nursery:
    """Starts commands in copies of a process that has imported everything."""

    def __init__(self, log):
        self._log = log
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.kills.nursery"],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self._answer() == "ready"

    def run(self, argv, place, mark=None, moment=None, here=False):
        """What became of `lrqat` with these arguments, see `tests.kills.nursery`.

        With `here` in the nursery itself, whose copies know what it has traced.
        """
        after, phase = moment or (None, PHASES[0])
        order = {"argv": argv, "log": str(self._log), "place": str(place), "here": here}
        order |= {"mark": str(mark or place), "kill_after": after, "phase": phase}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def said(self):
        """What the last command printed."""
        return self._log.read_text(encoding="utf-8", errors="replace")

    def close(self):
        self._process.stdin.close()
        self._process.wait()

    def _answer(self):
        line = self._process.stdout.readline()
        assert line, "the nursery died"
        return json.loads(line)


class Trial:
    """The kills of one case."""

    def __init__(self, nursery, case, folder):
        self._nursery, self._case = nursery, case
        self._start, self._place = folder / "before", folder / "place"
        self._start.mkdir(parents=True)
        if case.before:
            before = self._argv(case.before, self._start)
            assert nursery.run(before, self._start)["status"] == 0, nursery.said()
            for name in ("mine.txt", f"{case.target}/mine.txt") if case.resumes else ():
                (self._start / name).write_text("a user's")
        self._old = artefact(self._start)
        self._times, self.count = {phase: [] for phase in PHASES}, Count()
        for _ in range(_UNDISTURBED):
            self._reset()
            assert self._run(self._argv(case.command), fresh=True) == 0, nursery.said()
            new = artefact(self._place)
            assert new == getattr(self, "_new", new), "two undisturbed runs are not the same"
            self._new = new
        assert self._new != self._old
        assert not unfinished(self._place)

    def kill(self, kills, seed, phase=0):
        """Kill `kills` runs at moments drawn from `seed`; what was found is in `count`.

        The first one in a phase, the next in the one after it.
        """
        drawn = random.Random(seed)
        for no in range(phase, phase + kills):
            # A busy machine may not let us see a phase of milliseconds before it is over.
            phases = [PHASES[no % len(PHASES)], PHASES[0]]
            tries = (self._moment(drawn.random(), phase) for phase in phases for _ in range(_TRIES))
            assert any(map(self._kill_once, tries)), "runs ended before they were killed"

    def _moment(self, part, phase):
        return Moment(part * self.count.seconds[phase], phase)

    def _kill_once(self, moment):
        """Whether the run was killed, and not done before."""
        self._reset()
        if self._run(self._argv(self._case.command), moment, fresh=True) >= 0:
            return False
        self.count.left += bool(unfinished(self._place))
        raw = self._state()
        whole = self._read(raw, moment)
        self.count.found[whole] += 1
        self.count.moments.append((moment, whole))
        self.count.finished += whole == "new" and raw != "new"
        self._run_again(whole, moment)
        if self._state() != "new":
            self._complain(moment, f"run again: {self._difference()}")
        if unfinished(self._place):
            self._complain(moment, f"litter: {unfinished(self._place)}")
        return True

    def _read(self, raw, moment):
        """What a reader finds; only a first file that is missing may have it finish something."""
        target = self._place / self._case.target
        if raw == "torn" and target.is_file():
            self._complain(moment, f"torn where all can read it: {self._difference()}")
        status = self._run(["inspect", str(target)])
        whole = self._state()
        if whole == "torn":
            self._complain(moment, f"torn: {self._difference()}")
        there = whole == "new" or bool(self._old)
        if status != (0 if there else 2):
            self._complain(moment, f"{whole}, but inspect: {self._nursery.said()[-300:]}")
        return whole

    def _run_again(self, whole, moment):
        argv = self._argv(self._case.command)
        if self._case.resumes:
            if self._run([*argv, "--resume", "auto"]) == 0:
                return
            # An overwriting run that had not begun: the states are the earlier run's.
            assert "start anew with --overwrite" in self._nursery.said(), self._nursery.said()
        exists = whole == "new" and "--overwrite" not in argv
        if self._run(argv) != (2 if exists else 0):
            self._complain(moment, f"run again: {self._nursery.said()[-300:]}")

    def _run(self, argv, moment=None, fresh=False):
        """The exit status; how long a whole run took is noted.

        `fresh`: no temporary folder was there before.
        """
        mark = self._place / self._case.target / self._case.mark
        answer = self._nursery.run(argv, self._place, mark, moment)
        if argv == self._argv(self._case.command) and answer["status"] == 0:
            for phase in PHASES if fresh else PHASES[:1]:
                self._times[phase].append(answer["phases"][phase])
                recent = self._times[phase][-_RECENT:]
                self.count.seconds[phase] = statistics.median(recent)
        return answer["status"]

    def _complain(self, moment, what):
        self.count.wrong.append(f"killed after {moment}: {what}")

    def _state(self):
        now = artefact(self._place)
        if now == self._new:
            return "new"
        return "old" if now == self._old else "torn"

    def _difference(self):
        now = artefact(self._place)
        return [name for name in sorted(now | self._new) if now.get(name) != self._new.get(name)]

    def _reset(self):
        shutil.rmtree(self._place, ignore_errors=True)
        shutil.copytree(self._start, self._place)

    def _argv(self, command, place=None):
        return [part.replace("{place}", str(place or self._place)) for part in command.split()]


def artefact(place):
    """Content by name of all in a folder that others see: no hidden names, no states.

    Of a run's report no more than that it is there: it tells seconds.
    """
    return {
        name: "" if Path(name).name == REPORT else sha256_of(place / name)
        for name in _names(place)
        if not _is_hidden(name) and _STATES not in Path(name).parts
    }


def unfinished(place):
    """What somebody left to be done: everything hidden, folders too."""
    names = (path.relative_to(place).as_posix() for path in place.rglob("*"))
    return sorted(filter(_is_hidden, names))


def _names(place):
    return [path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()]


def _is_hidden(name):
    return any(part.startswith(".") for part in Path(name).parts)
