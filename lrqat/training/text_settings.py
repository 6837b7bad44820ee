"""The settings of a run's text: what is trained on, and what is measured on."""

from dataclasses import dataclass, field

from lrqat.errors import UserError
from lrqat.settings import AUTO, Group, about, at_least, one_of, option
from lrqat.training.data.loss_on import LOSS_ON
from lrqat.training.data.packing import PACKING, STREAM
from lrqat.training.data.sources import Source, parse_sources


@dataclass(frozen=True, kw_only=True)
class TextSettings(Group):
    """What is trained on, and what perplexity is measured on."""

    title = "text"

    data: str | tuple[str, ...] = field(
        metadata=about("plain text, .jsonl, .json, .parquet, .csv or .tsv, packed or not; a folder "
                       "of them; the name of a Hugging Face dataset; -: standard input; or self: "
                       "text that the model writes; self:prompts.jsonl: its answers. Several "
                       "have shares: a.jsonl:0.8 b.txt:0.2")
    )  # fmt: skip
    loss_on: str = option(
        "tokens that are learned: "
        + "; ".join(f"{name}: {what}" for name, what in LOSS_ON.items()),
        AUTO,
        one_of(LOSS_ON),
    )
    packing: str = option(
        "documents in a sequence: "
        + "; ".join(f"{name}: {what}" for name, what in PACKING.items()),
        STREAM,
        one_of(PACKING),
    )
    eval_data: str | None = option(
        "file of text for the perplexities; default: the start of --data is held out", None
    )
    context: int = option("tokens per window of the perplexities", 512)
    eval_windows: int = option("windows of the perplexities at most", 40, at_least(1))

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.data, str):
            one = self.data[0] if len(self.data) == 1 else tuple(self.data)
            object.__setattr__(self, "data", one)  # so that one is recorded in one way
        own = next((source for source in self.sources if source.is_own), None)
        if own is None:
            return
        if len(self.sources) > 1:
            raise UserError("--data self is mixed with no other text; give it alone")
        if not self.eval_data:
            raise UserError("--data self needs --eval-data: a text that the model did not write")
        if own.prompts is None and self.packing != STREAM:
            raise UserError("--data self is one stream of text; leave out --packing")

    @property
    def writes_own(self) -> bool:
        """Whether the model writes what is trained on."""
        return self.data != "" and self.sources[0].is_own

    @property
    def sources(self) -> tuple[Source, ...]:
        """What `data` names."""
        return parse_sources(self.data)
