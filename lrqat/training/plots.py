"""Pictures of a training run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def plot_training(history: list[dict[str, float]], path: Path, title: str) -> None:
    """Draw loss and share of changed integers over the steps into a PNG at `path`.

    Args:
        history: {"step", "loss", "changed"} in the order of steps; empty draws nothing.
        path: file to write.
        title: one line, shown as it is.
    """
    if not history:
        return
    steps = [row["step"] for row in history]
    # A Figure without pyplot: no window, no global state, nothing to close.
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    left = figure.subplots()
    left.plot(steps, [row["loss"] for row in history], color="tab:blue")
    left.set(xlabel="step")
    left.set_title(title, parse_math=False)  # a name may have dollars in it
    left.set_ylabel("loss (nats per token)", color="tab:blue")
    left.grid(alpha=0.3)
    right = left.twinx()
    right.plot(steps, [100 * row["changed"] for row in history], color="tab:orange")
    right.set_ylabel("integers changed (%)", color="tab:orange")
    right.set_ylim(bottom=0)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def plot_comparison(cells: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw KL over bits per weight, a line for each method, into a PNG at `path`.

    Args:
        cells: rows with "method", "grid", "bits_per_weight" and "kl".
        path: file to write.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(cell["method"] for cell in cells):
        own = sorted(
            (cell for cell in cells if cell["method"] == method),
            key=lambda cell: cell["bits_per_weight"],
        )
        bits = [cell["bits_per_weight"] for cell in own]
        axes.plot(bits, [cell["kl"] for cell in own], marker="o", label=method)
        for cell in own:
            axes.annotate(cell["grid"], (cell["bits_per_weight"], cell["kl"]), fontsize=7)
    axes.set(xlabel="bits per weight", ylabel="KL to full precision (nats)", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})


def plot_frontier(
    ours: Sequence[tuple[float, float, bool]],
    recipes: Mapping[str, tuple[float, float]],
    path: Path,
) -> None:
    """Draw KL over megabytes, llama-quantize's recipes as points, into a PNG at `path`.

    Args:
        ours: (megabytes, KL, whether it was measured), the smallest first.
        recipes: name -> (megabytes, KL).
        path: file to write.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    sizes, kls = [size for size, _, _ in ours], [kl for _, kl, _ in ours]
    axes.plot(sizes, kls, color="tab:blue", label="allotted (estimated)")
    sure = [(size, kl) for size, kl, measured in ours if measured]
    if sure:
        axes.plot(*zip(*sure, strict=True), "o", color="tab:blue", label="allotted (measured)")
    for name, (size, kl) in recipes.items():
        axes.plot(size, kl, "x", color="tab:orange")
        axes.annotate(name, (size, kl), fontsize=7, xytext=(3, 3), textcoords="offset points")
    axes.set(xlabel="GGUF file (MB)", ylabel="KL to full precision (nats)", yscale="log")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120, metadata={"Software": None})
