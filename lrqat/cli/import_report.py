"""What was found on which grid, for people; of `import`, and of `inspect` on a folder."""

from lrqat.cli import command
from lrqat.importing.examination import TensorReport
from lrqat.importing.run import ImportReport


def show_import(out: command.Output, report: ImportReport) -> None:
    """A line for each way in which tensors came out, and one for each that is on no grid."""
    for note in report.notes:
        out.say(f"note: {note}")
    by_way: dict[tuple[str, str], list[TensorReport]] = {}
    for each in report.tensors:
        if each.is_exact:
            by_way.setdefault((each.stored, str(each.grid)), []).append(each)
    rows = [(*way, len(found), f"{sum(e.weights for e in found):,}")
            for way, found in by_way.items()]  # fmt: skip
    if rows:
        out.table("exact", ("stored as", "grid", "tensors", "weights"), rows)
    others = [each for each in report.tensors if not each.is_exact]
    if others:
        columns = ("tensor", "stored as", "now", "nearest", "exact", "largest difference")
        out.table("not exact", columns, [
            (e.name, e.stored, e.grid or "unquantized", e.nearest or "", f"{e.share:.4%}",
             f"{e.difference:.3g}") for e in others
        ])  # fmt: skip
    for each in report.tensors:
        if each.note:
            out.say(f"{each.name}: {each.note}")
