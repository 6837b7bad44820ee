"""How the KL of single tokens is spread."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, PercentFormatter

from lrqat.reporting.charts import Chart, chart_of
from lrqat.reporting.material import TokenKL
from lrqat.reporting.svg import colour, logarithmic

_LEAST_KL = 1e-6  # nats, below which a difference is one of summation
_BINS = np.geomspace(_LEAST_KL, 30, 60)


def divergences(tokens: Mapping[str, TokenKL]) -> Chart:
    """How the KL of single tokens is spread, a line for each model."""
    kls = {name: np.array([t.kl for t in each.tokens]) for name, each in tokens.items()}
    low = min(float(np.quantile(values, 0.002)) for values in kls.values())
    least = max(_LEAST_KL, 10 ** np.floor(np.log10(max(low, _LEAST_KL))))

    def draw(axes: Axes) -> None:
        for n, values in enumerate(kls.values()):
            counts, edges = np.histogram(np.clip(values, least, _BINS[-1]), _BINS)
            axes.stairs(counts / len(values), edges, color=colour(n), linewidth=1.7)
            axes.stairs(counts / len(values), edges, color=colour(n), fill=True, alpha=0.12)
            axes.axvline(max(float(values.mean()), least), color=colour(n), linestyle=":")
        axes.set(xlabel="KL of a token (nats)", ylabel="of all tokens")
        axes.set_xlim(least, _BINS[-1])
        logarithmic(axes.xaxis)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))

    words = [
        f"half of the tokens below {np.quantile(v, 0.5):.3g}, 99% below "
        f"{np.quantile(v, 0.99):.3g}, the mean {v.mean():.3g}, the most {v.max():.3g}"
        for v in kls.values()
    ]
    note = f"Dotted: the mean. What is below {least:g} stands at the left edge."
    return chart_of("KL of single tokens", list(kls), words, draw, note)


def concentration(tokens: Mapping[str, TokenKL]) -> Chart:
    """How much of all KL the worst tokens hold, a line for each model."""
    sums = {}
    for name, each in tokens.items():
        kls = np.sort([token.kl for token in each.tokens])[::-1]
        sums[name] = np.cumsum(kls) / max(float(kls.sum()), _LEAST_KL)

    def draw(axes: Axes) -> None:
        for n, held in enumerate(sums.values()):
            axes.plot(np.arange(1, len(held) + 1) / len(held), held, color=colour(n))
        axes.set(xlabel="of all tokens, the worst first", ylabel="of all KL", ylim=(0, 1.02))
        logarithmic(axes.xaxis)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda share, place: f"{100 * share:g}%"))

    words = [f"the worst tenth of the tokens holds {v[len(v) // 10]:.0%}" for v in sums.values()]
    return chart_of("Who holds the KL", list(sums), words, draw)
