"""What the block-wise stage needs in memory beside the model, from shapes alone."""

from collections import Counter
from typing import Any

from lrqat.models.hidden_states import anatomy
from lrqat.models.surgery import SurgeryPlan
from lrqat.training.blocks.states import MOST_IN_MEMORY
from lrqat.training.config import TrainConfig
from lrqat.training.estimate import values_of_a_layer
from lrqat.training.stage_settings import BLOCK_BATCH, COMPENSATED

# V, two moments, and the integers of round-to-nearest.
_BYTES_A_WEIGHT = 4 * 3 + 1
# Of the largest beside that: its gradient, as it comes and added up.
_BYTES_OF_A_STEP = 4 * 2
# float64 copies of the largest second moments while their inverse is factorised.
_COPIES_OF_MOMENTS = 3


def block_bytes(model: Any, plan: SurgeryPlan, config: TrainConfig) -> int:
    """Bytes of the fullest block: its weights and their optimiser, hidden states, activations.

    Or of the head, which is measured with the logits of a sequence.

    Args:
        model: on any device, also meta.
        plan: which weights go on which grid.
        config: the settings, resolved.
    """
    prefix = f"{anatomy(model).layers}."
    weights: Counter[str] = Counter()
    moments: Counter[str] = Counter()
    largest = 0
    for name, target in plan.quantized.items():
        if name.startswith(prefix):
            block = name.removeprefix(prefix).partition(".")[0]
            weights[block] += target.weights
            largest = max(largest, target.weights)
            moments[block] += 4 * target.shape[1] ** 2 if target.is_layer else 0
    if config.block_start != COMPENSATED:
        moments.clear()
    widest = max((t.shape[1] for t in plan.quantized.values() if t.is_layer), default=0)
    text = model.config.get_text_config()
    tokens = max(BLOCK_BATCH, config.sequence_length)
    states = 2 * min(2 * config.block_text * text.hidden_size, MOST_IN_MEMORY)
    started = max(moments.values(), default=0)
    started += _COPIES_OF_MOMENTS * 8 * widest**2 if moments else 0
    kept = 4 * tokens * values_of_a_layer(text)
    fitted = max(started, kept + _BYTES_OF_A_STEP * largest) + _BYTES_A_WEIGHT * max(
        weights.values(), default=0
    )
    return states + max(fitted, 4 * config.sequence_length * text.vocab_size)
