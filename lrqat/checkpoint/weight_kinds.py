"""The kinds of weights that training puts on a grid, as lrqat.json records them."""

from enum import StrEnum


class WeightKind(StrEnum):
    """What holds a trained weight in its model; on the grid it is always (out, in)."""

    LINEAR = "linear"  # nn.Linear, (out, in)
    CONV1D = "conv1d"  # transformers' Conv1D, (in, out)
    EMBEDDING = "embedding"  # nn.Embedding, (vocabulary, hidden); perhaps the output head too
    EXPERTS = "experts"  # one parameter for all experts of a layer, (experts, out, in)
