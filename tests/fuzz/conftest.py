"""The table at the end of `make fuzz`."""

from rich.console import Console
from rich.table import Table

from tests.fuzz.harness import ASKED, TALLIES, Tally

COLUMNS = ("target", "inputs", "refused", "accepted", "slowest (s)", "all (s)")


def pytest_terminal_summary():
    ran = {name: tally for name, tally in TALLIES.items() if tally.inputs}
    if ASKED is None or not ran:
        return
    table = Table(title=f"FUZZ_INPUTS={ASKED}", title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column == "target" else "right")
    for name, tally in sorted(ran.items()):
        table.add_row(*_row(name.removeprefix("test_").replace("_", " "), tally))
    table.add_section()
    table.add_row(*_row("all", _sum(ran.values())))
    Console(width=100).print(table)


def _row(name, tally):
    counts = (tally.inputs, tally.refused, tally.inputs - tally.refused)
    return (name, *(f"{n:,}" for n in counts), f"{tally.slowest:.2f}", f"{tally.seconds:.0f}")


def _sum(tallies):
    total = Tally()
    for tally in tallies:
        total.inputs, total.refused = total.inputs + tally.inputs, total.refused + tally.refused
        total.slowest = max(total.slowest, tally.slowest)
        total.seconds += tally.seconds
    return total
