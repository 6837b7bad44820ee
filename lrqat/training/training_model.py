"""What the Trainer trains: a prepared model and its loss as one module.

The loss is computed inside this module's forward, so that the hooks of DDP and FSDP, which gather
parameters and exchange gradients, run around everything that is differentiated.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from lrqat.errors import ModelError


class TrainingModel(nn.Module):
    """A prepared model and its loss as one module.

    Args:
        model: from `lrqat.models.preparation.prepare`.
        objective: `objective(model, input_ids, **extra)`, the scalar loss. A teacher that it holds
            is not a submodule: it is neither saved nor distributed.
        gradient_checkpointing: keep only the inputs of every block and compute the rest again in
            the backward pass.
    """

    # All blocks have the same number of tokens: the mean over micro-batches is the mean over
    # tokens, and the Trainer divides by their number only if this is off.
    accepts_loss_kwargs = False

    def __init__(
        self,
        model: nn.Module,
        objective: Callable[..., Tensor],
        *,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.model: Any = model
        self._objective = (objective,)  # in a tuple: not a submodule, even if it is a module
        # Accelerate asks the outermost module which blocks FSDP wraps.
        self._no_split_modules = getattr(model, "_no_split_modules", None)
        if gradient_checkpointing:
            enable_checkpointing(model)

    def forward(self, input_ids: Tensor, **extra: Any) -> dict[str, Tensor]:
        """The loss of `input_ids` (batch, tokens), as {"loss": scalar}."""
        return {"loss": self._objective[0](self.model, input_ids, **extra)}

    def tie_weights(self) -> None:
        """Tie the model's embeddings again; Accelerate asks for it after moving weights."""
        self.model.tie_weights()


def enable_checkpointing(model: Any) -> None:
    """Keep one hidden state per layer, and compute the rest again in the backward pass.

    Args:
        model: of transformers, prepared or not.

    Raises:
        ModelError: the model cannot do that.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ModelError(
            f"{type(model).__name__} does not support gradient checkpointing; leave out "
            "--gradient-checkpointing, and use a smaller --batch-size if memory runs out"
        )
    # The name of transformers before 5.2x; both take the same arguments.
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    # The reentrant form asks for an input with a gradient, which a frozen embedding does not give.
    enable({"use_reentrant": False})
