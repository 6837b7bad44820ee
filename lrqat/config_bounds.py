"""How much a configuration may ask for: what is made of it is built layer by layer.

transformers makes modules, and exporters names, for as many layers as config.json says, and would
do so for hours.
"""

import re
from collections.abc import Iterator
from typing import Any

from lrqat.errors import ModelError

# num_hidden_layers, n_layer, encoder_layers, depth, num_blocks; n_routed_experts, num_experts.
# The largest known models have some 130 layers, and 61 of 384 experts.
_LAYERS, _MOST_LAYERS = re.compile("(layers?|blocks|depth)$"), 1024
_EXPERTS, _MOST_EXPERTS = re.compile("experts$"), 1 << 16
# Classes of a classifier, for each of which every configuration holds a name.
_LABELS, _MOST_LABELS = re.compile("^num_labels$"), 1 << 20


def refuse_absurd_counts(name: object, config: dict[str, Any]) -> None:
    """Refuse a configuration with more layers or experts than any model has.

    Args:
        name: of the model, for the message.
        config: the content of config.json.

    Raises:
        ModelError: it has.
    """
    if max(_counts(config, _LABELS), default=0) > _MOST_LABELS:
        raise ModelError(f"config.json of {name} has more labels than any classifier; remove them")
    layers = max(_counts(config, _LAYERS), default=0)
    experts = max(_counts(config, _EXPERTS), default=0)
    if layers > _MOST_LAYERS or layers * experts > _MOST_EXPERTS:
        of_experts = f" of {experts:,} experts" if experts else ""
        raise ModelError(
            f"config.json of {name} asks for {layers:,} layers{of_experts}, more than any model "
            "has; use an intact copy of the model"
        )


def _counts(config: dict[str, Any], names: re.Pattern[str]) -> Iterator[int]:
    """The integers under such names, in the configuration and in those of its parts."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _counts(value, names)
        elif isinstance(value, int) and names.search(str(key)):
            yield value
