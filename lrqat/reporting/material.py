"""What a report is made of, whatever files it came from."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from lrqat.evaluation.token_divergence import TokenDivergence


@dataclass(frozen=True)
class Layer:
    """A weight of a model.

    Attributes:
        name: of its module, or of its tensor in an exported file.
        grid: name of its grid or type.
        bits: per weight, scales included.
        weights: how many.
        error: |W - W0|^2 / |W0|^2 against the base's W0; None where that is not at hand.
        integers: share of each integer of the grid, from the smallest; empty where unknown.
        changed_in_blocks: share of the integers that the block-wise stage changed; None: no stage.
        changed: share that the steps of the whole model changed; None where unknown.
        sensitivity: KL in nats a token that it adds on its grid, estimated before training.
    """

    name: str
    grid: str
    bits: float
    weights: int
    error: float | None = None
    integers: tuple[float, ...] = ()
    changed_in_blocks: float | None = None
    changed: float | None = None
    sensitivity: float | None = None


@dataclass(frozen=True)
class Block:
    """A decoder block of the block-wise stage: errors before and after, integers changed."""

    name: str
    before: float
    after: float
    changed: float


@dataclass(frozen=True)
class Training:
    """What a run did.

    Attributes:
        finished: whether it ended; else this is what its last state says.
        settings: those that a reader wants to know, by their names.
        history: of each logged step: "step", "loss", "changed", and "rate_NAME" of each rate.
        blocks: of the block-wise stage.
        perplexity: "before", "round_to_nearest", "start", "after", those that were measured.
        kl: likewise, but for "before".
        same_top: after training.
        changed: share of the integers that the steps changed.
        seconds: of training.
        skipped_steps: whose loss or gradients were not finite.
        shares: name of a weight -> share of its integers that the steps changed.
        block_shares: the same of the block-wise stage.
        sensitivity: name of a weight -> KL in nats a token, of a run under a budget.
    """

    finished: bool
    settings: dict[str, str] = field(default_factory=dict)
    history: tuple[dict[str, float], ...] = ()
    blocks: tuple[Block, ...] = ()
    perplexity: dict[str, float] = field(default_factory=dict)
    kl: dict[str, float] = field(default_factory=dict)
    same_top: float | None = None
    changed: float | None = None
    seconds: float | None = None
    skipped_steps: int = 0
    shares: dict[str, float] = field(default_factory=dict)
    block_shares: dict[str, float] = field(default_factory=dict)
    sensitivity: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Model:
    """A model that was given: a run, a fused checkpoint or an exported file.

    Attributes:
        path: as given.
        kind: what it is, for people.
        base: name of what it was made from; empty where it does not say.
        grids: grid or type -> share of the weights, the largest first.
        bytes: of its files; 0 where there are none yet.
        bits_per_weight: of all tensors, scales included; None where there are none yet.
        perplexity: that it records of itself, if it does.
        layers: its weights.
        training: of a run.
        base_path: where its base is on this machine, if it is.
    """

    path: str
    kind: str
    base: str = ""
    grids: dict[str, float] = field(default_factory=dict)
    bytes: int = 0
    bits_per_weight: float | None = None
    perplexity: float | None = None
    layers: tuple[Layer, ...] = ()
    training: Training | None = None
    base_path: str | None = None


@dataclass(frozen=True)
class TokenKL:
    """A model against its base, token by token.

    Attributes:
        path: of the model.
        base: of the base.
        runtime: what ran the model.
        bytes: of its files.
        context: tokens of a window.
        perplexity: of the model.
        base_perplexity: of the base.
        kl: mean KL(base || model), nats.
        quantiles: name -> KL that so many of the tokens stay below.
        same_top: share of tokens where both put the same token first.
        groups: heading -> name -> (mean KL, tokens).
        leading: of every window, the text before what is scored.
        tokens: in order.
    """

    path: str
    base: str
    runtime: str
    bytes: int
    context: int
    perplexity: float
    base_perplexity: float
    kl: float
    quantiles: dict[str, float]
    same_top: float
    groups: dict[str, dict[str, tuple[float, int]]]
    leading: tuple[str, ...]
    tokens: tuple[TokenDivergence, ...]


@dataclass(frozen=True)
class Proof:
    """What `lrqat parity` found about one exported file."""

    path: str
    runtime: str
    bytes: int
    verdicts: dict[str, bool]
    tensors: int
    mismatches: int
    logit_difference: float | None
    perplexity: float
    reference_perplexity: float
    kl: float
    same_top: float
    failures: tuple[str, ...]


@dataclass(frozen=True)
class Size:
    """A file that a plan allots, or one of llama-quantize's recipes: bytes, and KL in nats."""

    name: str
    bytes: int
    estimate: float
    measured: float | None = None

    @property
    def kl(self) -> float:
        """The measured KL, or the estimate."""
        return self.estimate if self.measured is None else self.measured


@dataclass(frozen=True)
class Frontier:
    """What `lrqat plan --frontier` found: our sizes, the smallest first, and others' recipes."""

    path: str
    points: tuple[Size, ...]
    recipes: tuple[Size, ...]


@dataclass
class Material:
    """All that was given, in the order in which it was given."""

    models: list[Model] = field(default_factory=list)
    tokens: list[TokenKL] = field(default_factory=list)
    proofs: list[Proof] = field(default_factory=list)
    frontiers: list[Frontier] = field(default_factory=list)


def owner(path: str, models: Sequence[str]) -> str:
    """Which of `models` a path names that was written down elsewhere; itself if none.

    It may be of another working folder or machine, so that where it is not here, one model of the
    same name will do.
    """
    place = os.path.abspath(path)
    exact = [model for model in models if os.path.abspath(model) == place]
    if exact or os.path.exists(path):
        return exact[0] if exact else path
    same = [model for model in models if os.path.basename(model) == os.path.basename(path)]
    return same[0] if len(same) == 1 else path
