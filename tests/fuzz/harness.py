"""What all fuzz targets share: altered inputs, the limits on every reader, and how long it goes on.

A reader is given what is nearly right, since what is not stops at the first check: real files with
bytes overwritten, inserted, repeated, cut; JSON with values replaced by what should not stand
there. It may take the input, or raise a UserError. Everything else is a fault, and so are five
seconds of computing and a gigabyte of memory.

A test run has about a thousand inputs, the same every time. `make fuzz` sets FUZZ_INPUTS, and draws
that many new ones; what became of them is a table at the end (`conftest`).
"""

import copy
import functools
import os
import signal
import struct
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from lrqat.cli.failures import explanation
from lrqat.errors import UserError

SECONDS, MEMORY = 5.0, 1 << 30
_HANG = 60.0  # seconds of computing after which an input that is still read is a hang
ASKED = os.environ.get("FUZZ_INPUTS")


@dataclass
class Tally:
    """What became of the inputs of a target.

    Attributes:
        inputs: how many there were.
        refused: how many of them a reader refused.
        slowest: seconds of processor time that the slowest took, from drawing it to the end.
        seconds: the same of all.
    """

    inputs: int = 0
    refused: int = 0
    slowest: float = 0.0
    seconds: float = 0.0


TALLIES: dict[str, Tally] = {}
_refused = [False]  # whether any reader has refused the input that is being read


def fuzz(share):
    """Decorator of a target.

    Args:
        share: of a thousand inputs, how many are its own. Targets whose inputs take long have few.
    """
    asked = share if ASKED is None else max(1, round(int(ASKED) * share / 1000))
    chosen = settings(
        max_examples=asked,
        derandomize=ASKED is None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )

    def decorate(test):
        test.hypothesis.inner_test = _counted(test.__name__, test.hypothesis.inner_test)
        return chosen(test)

    return decorate


def _counted(name, test):
    """`test`, which reads one input, and its tally."""
    tally = TALLIES[name] = Tally()

    @functools.wraps(test)
    def run(*args, **kwargs):
        _refused[0], start = False, _processor_time()
        try:
            test(*args, **kwargs)
        finally:
            taken = _processor_time() - start
            tally.inputs, tally.refused = tally.inputs + 1, tally.refused + _refused[0]
            tally.slowest, tally.seconds = max(tally.slowest, taken), tally.seconds + taken

    return run


def _processor_time():
    """Seconds of this process and of those that it has waited for."""
    return sum(os.times()[:4])


def _complain(signum, frame):
    raise AssertionError(f"still reading after {_HANG:.0f} s of computing")


@contextmanager
def limited(mapped=0):
    """A gigabyte more than now, where the system can say so, and five seconds of processor time.

    `mapped`: bytes of files that are mapped, which are addresses and not memory.
    """
    start, before = time.process_time(), None
    if sys.platform == "linux":
        import resource

        with open("/proc/self/statm", encoding="ascii") as stream:
            now = int(stream.read().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY + mapped, before[1]))
        signal.signal(signal.SIGPROF, _complain)
        signal.setitimer(signal.ITIMER_PROF, _HANG)
    try:
        yield
    finally:
        if sys.platform == "linux":
            signal.setitimer(signal.ITIMER_PROF, 0)
        if before is not None:
            resource.setrlimit(resource.RLIMIT_AS, before)
    assert time.process_time() - start < SECONDS


def outcome(read):
    """What `read()` returns, or the UserError that it raises, whose message can be printed."""
    with limited():
        try:
            found = read()
        except UserError as error:
            found = error
    if isinstance(found, UserError):
        _refused[0] = True
        assert len(explanation(found).encode("utf-8")) < 10_000
    return found


_NUMBERS = [0, 1, 0xFF, 2**16, 2**26, 2**30, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1]
_WORDS = [struct.pack("<Q", n) for n in _NUMBERS] + [
    struct.pack("<I", n) for n in _NUMBERS if n < 2**32
]
_PIECES = st.one_of(
    st.sampled_from(
        [*_WORDS, b"", b"\0", b"\xff", b"\0" * 64, b"{" * 3000, b"[" * 3000, b"9" * 5000]
    ),
    st.sampled_from([b'"', b",", b":", b"null", b"-1", b"1e999", b"NaN", b"true", b'"\\ud800"']),
    st.binary(max_size=16),
)
_EDITS = st.lists(
    st.tuples(
        st.floats(0, 1), st.sampled_from(["over", "insert", "cut", "repeat", "end"]), _PIECES
    ),
    min_size=1,
    max_size=4,
)


@st.composite
def altered_bytes(draw, corpus, beginning=None):
    """Bytes of one of `corpus` with some edits, among the first `beginning` bytes more often."""
    data = bytearray(draw(st.sampled_from(corpus)))
    for place, edit, piece in draw(_EDITS):
        most = len(data) if beginning is None or draw(st.booleans()) else min(beginning, len(data))
        at = int(place * most)
        if edit == "over":
            data[at : at + len(piece)] = piece
        elif edit == "insert":
            data[at:at] = piece
        elif edit == "cut":
            del data[at : at + 1 + len(piece)]
        elif edit == "repeat":
            data[at:at] = data[at : at + 40]
        else:
            del data[at:]
    return bytes(data)


_ODD = st.one_of(
    st.sampled_from([None, True, False, -1, 0, 2, 7, 0.5, -0.0, 1e30, 10**9, 2**31, 2**63, 10**40]),
    st.sampled_from(["", "x", "\0", "\x1b[2J", "ä", "../../x", "model", "9" * 5000, "a" * 10**5]),
    st.sampled_from([[], {}, [[]], [{}], {"": None}, [0] * 1000, {"a": [1, "b"]}, float("nan")]),
    st.integers(-3, 1000),
    st.text(max_size=8),
)  # fmt: skip


def _places(value, at=()):
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        if isinstance(item, dict | list) and item:
            yield from _places(item, (*at, key))
        else:
            yield (*at, key)


@st.composite
def altered_json(draw, corpus):
    """A JSON object of `corpus` with up to three of its values replaced, removed or added."""
    value = copy.deepcopy(draw(st.sampled_from(corpus)))
    for _ in range(draw(st.integers(1, 3))):
        *path, key = draw(st.sampled_from([at for at in _places(value) if at] or [("x",)]))
        inner = value
        for step in path:
            inner = inner[step]
        edit = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if edit == "remove" and isinstance(inner, dict):
            inner.pop(key, None)
        elif edit == "add" and isinstance(inner, dict):
            inner[draw(st.text(max_size=5))] = copy.deepcopy(draw(_ODD))
        else:
            inner[key] = copy.deepcopy(draw(_ODD))  # else a later edit changes the odd ones
    return value
