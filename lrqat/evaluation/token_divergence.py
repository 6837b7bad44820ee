"""What is known of one scored token of a model that is compared with its base."""

from dataclasses import dataclass

Guesses = tuple[tuple[str, float], ...]  # token and probability, the likeliest first


@dataclass(frozen=True)
class TokenDivergence:
    """One scored token.

    Attributes:
        window: number of its window.
        position: in the window, from 0.
        token: its text.
        kl: KL(base || target) of the distribution it was drawn from, nats.
        base_nll: its surprise to the base, nats.
        nll: to the target.
        base_says: the most likely tokens to the base with their probabilities.
        says: to the target.
    """

    window: int
    position: int
    token: str
    kl: float
    base_nll: float
    nll: float
    base_says: Guesses
    says: Guesses

    @property
    def base_top(self) -> str:
        """The most likely token to the base."""
        return self.base_says[0][0]

    @property
    def top(self) -> str:
        """The most likely token to the target."""
        return self.says[0][0]
