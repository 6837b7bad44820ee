"""Pictures of a training run."""

from pathlib import Path

from matplotlib.figure import Figure


def plot_training(history: list[dict[str, float]], path: Path, title: str) -> None:
    """Draw loss and share of changed integers over the steps into a PNG at `path`.

    Args:
        history: {"step", "loss", "changed"} in the order of steps; empty draws nothing.
        path: file to write.
        title: one line.
    """
    if not history:
        return
    steps = [row["step"] for row in history]
    # A Figure without pyplot: no window, no global state, nothing to close.
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    left = figure.subplots()
    left.plot(steps, [row["loss"] for row in history], color="tab:blue")
    left.set(xlabel="step", title=title)
    left.set_ylabel("loss (nats per token)", color="tab:blue")
    left.grid(alpha=0.3)
    right = left.twinx()
    right.plot(steps, [100 * row["changed"] for row in history], color="tab:orange")
    right.set_ylabel("integers changed (%)", color="tab:orange")
    right.set_ylim(bottom=0)
    figure.savefig(path, dpi=120, metadata={"Software": None})
