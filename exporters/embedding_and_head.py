"""The embedding and the output head: what every format decides about them in the same way.

They are a model's two biggest matrices and often left unquantized, so a user may choose how each is
stored: `--embedding-type` and `--head-type`. Which types there are, and what "auto" means, is in
each format's own `embedding_and_head`. A head that is the embedding has its type, and what was
trained on a grid stays on it.
"""

from dataclasses import dataclass
from typing import Protocol

from lrqat.architectures import is_embedding, is_output_head
from lrqat.checkpoint.reader import Checkpoint
from lrqat.checkpoint.weight_kinds import WeightKind

AUTO = "auto"
_EMBEDDING_FLAG, _HEAD_FLAG = "--embedding-type", "--head-type"


class TypeOptions(Protocol):
    """A format's options, of which these two are asked for."""

    @property
    def embedding_type(self) -> str | None:
        """Value of --embedding-type."""

    @property
    def head_type(self) -> str | None:
        """Value of --head-type."""


@dataclass(frozen=True)
class EmbeddingAndHead:
    """What the two are called: modules of a checkpoint, or tensors of a file.

    Attributes:
        embedding: None where no name is one that we know.
        head: None where the head is the embedding.
    """

    embedding: str | None
    head: str | None

    @property
    def of_logits(self) -> str | None:
        """The one that logits are computed with."""
        return self.head or self.embedding

    def flag(self, name: str) -> str | None:
        """The option that chooses the type of `name`; None: it is neither of the two."""
        return {self.embedding: _EMBEDDING_FLAG, self.head: _HEAD_FLAG}.get(name)

    def asked_type(self, name: str, options: TypeOptions) -> str:
        """What the user asks for `name`: a type, or "auto"."""
        asked = {_EMBEDDING_FLAG: options.embedding_type, _HEAD_FLAG: options.head_type}
        flag = self.flag(name)
        return (flag and asked[flag]) or AUTO

    def refuses_head_type(self, options: TypeOptions) -> str | None:
        """Why a head that is the embedding cannot have a type of its own, if that is asked for."""
        if self.head is not None or options.head_type in (AUTO, options.embedding_type):
            return None
        return (
            f"{_HEAD_FLAG} {options.head_type}: this model's head is its embedding, one matrix for "
            f"both; ask for {_EMBEDDING_FLAG} {options.head_type}"
        )


def find_embedding_and_head(checkpoint: Checkpoint) -> EmbeddingAndHead:
    """The modules of `checkpoint`: a trained embedding, and what else there is, by its name."""
    quantized = checkpoint.quantized_names
    trained = [name for name in quantized if checkpoint.kind(name) == WeightKind.EMBEDDING]
    weights = [name for name in checkpoint.floating_names if name.endswith(".weight")]
    names = [*quantized, *(name.removesuffix(".weight") for name in weights)]
    embeddings = [*trained, *filter(is_embedding, names)]
    return EmbeddingAndHead(next(iter(embeddings), None), next(filter(is_output_head, names), None))


def head_is_embedding(checkpoint: Checkpoint) -> bool:
    """Whether one matrix is both: the configuration says so, and there is no head of its own."""
    tied = checkpoint.config.get("tie_word_embeddings")
    return bool(tied) and find_embedding_and_head(checkpoint).head is None


def refuses_other_type(flag: str, asked: str, module: str, grid: str, form: str = "") -> str:
    """Why what was trained on a grid cannot have another type.

    Args:
        flag: the option that asks for it.
        asked: the type.
        module: in the checkpoint.
        grid: its name.
        form: the exact type that it gets, where that has a name.
    """
    stored = f", in {form}" if form else ""
    return (
        f"{flag} {asked}: {module} was trained on the grid {grid} and is stored as it was trained"
        f"{stored}; leave {flag} out"
    )
