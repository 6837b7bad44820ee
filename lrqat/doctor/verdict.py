"""Where the types of a model run: each back-end of the table, judged by its slowest type."""

from dataclasses import dataclass
from typing import Any

from lrqat.doctor.subject import Subject
from lrqat.grids.backends import BACKENDS, GGUF, REMARKS, Backend, Speed

_WORST_FIRST = (Speed.REFUSED, Speed.UNKNOWN, Speed.SLOW, Speed.RUNS, Speed.FAST)
_MOST_NAMED = 6  # back-ends of a kind in the one line


@dataclass(frozen=True)
class Verdict:
    """How a back-end does all types of a model.

    Attributes:
        backend: its name in the table.
        row: its row.
        speed: of the worst of the types; None: the model has no form in what it reads.
        types: how it does each.
        reason: what there is to say of the worst ones.
    """

    backend: str
    row: Backend
    speed: Speed | None
    types: dict[str, Speed]
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "backend": self.backend,
            "runtime": self.row.runtime,
            "reads": self.row.reads,
            "verdict": self.speed and str(self.speed),
            "types": {name: str(speed) for name, speed in self.types.items()},
            "reason": self.reason,
            "source": self.row.source,
        }


def judge(subject: Subject) -> list[Verdict]:
    """All back-ends that read a form of the subject, or say why there is none."""
    return [
        _verdict(name, row, subject)
        for name, row in BACKENDS.items()
        if row.reads in subject.types or row.reads in subject.misfits
    ]


def one_line(verdicts: list[Verdict]) -> str:
    """The verdict of all, for who trains or exports: what runs it fast, and what does not."""
    parts = []
    for speed in reversed(_WORST_FIRST):
        found = [each for each in verdicts if each.speed == speed]
        if found:
            named = ", ".join(each.backend for each in found[:_MOST_NAMED])
            more = len(found) - _MOST_NAMED
            word = {Speed.REFUSED: "not", Speed.RUNS: "at unknown speed"}.get(speed, str(speed))
            parts.append(f"{word} on {named}" + (f" and {more} more" if more > 0 else ""))
    return f"runs {'; '.join(parts)}" if parts else "runs nowhere that is known"


def remarks(subject: Subject) -> list[str]:
    """What is to be known of its types before one trains on them."""
    types = subject.types.get(GGUF, {})
    return list(dict.fromkeys(REMARKS[name] for name in types if name in REMARKS))


def _verdict(name: str, row: Backend, subject: Subject) -> Verdict:
    if row.reads not in subject.types:
        return Verdict(name, row, None, {}, subject.misfits[row.reads])
    held = subject.types[row.reads]
    names = [row.exported(each) if subject.planned else each for each in held]
    types = {each: row.speed_of(each) for each in names}
    worst = next((s for s in _WORST_FIRST if s in types.values()), Speed.FAST)
    blamed = [each for each, speed in types.items() if speed == worst] if len(types) > 1 else []
    reasons = dict.fromkeys(
        reason
        for each, speed in types.items()
        if speed == worst and (reason := row.reason_for(each))
    )
    said = "; ".join(reasons)
    if worst != Speed.FAST and blamed:
        said = ", ".join(blamed) + (f": {said}" if said else "")
    return Verdict(name, row, worst, types, said)
