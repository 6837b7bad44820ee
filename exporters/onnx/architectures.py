"""What an architecture needs beyond what torch's exporter does with it: the one table of that.

An architecture without an entry is exported as it is; torch and the tests decide if it works.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """What is particular about the models of one `model_type`.

    Attributes:
        genai_type: what ONNX Runtime GenAI calls it; None: as transformers does. Its list of
            types has no others; one that is not on it but has the same inputs and outputs passes
            under another's name.
        transposed: regular expression for matrices that are (in, out) in a Hugging Face folder.
        refuses: reason why a configuration cannot be exported, or None.
    """

    genai_type: str | None = None
    transposed: str | None = None
    refuses: Callable[[Config], str | None] = lambda config: None

    def is_transposed(self, name: str) -> bool:
        """Whether the floating matrix `name` lies (in, out) in the checkpoint, as in ONNX."""
        return self.transposed is not None and re.search(self.transposed, name) is not None


ARCHITECTURES: dict[str, Architecture] = {
    # transformers' Conv1D.
    "gpt2": Architecture(genai_type="llama", transposed=r"\.(c_attn|c_proj|c_fc)\.weight$"),
    "olmo2": Architecture(genai_type="olmo"),
}


def find_architecture(config: Config) -> Architecture:
    """The entry of a config.json, or an empty one."""
    return ARCHITECTURES.get(str(config.get("model_type")), Architecture())


def refuses_architecture(config: Config) -> str | None:
    """Why a model cannot become one graph of ONNX, or None."""
    return _refuses_rope(config) or find_architecture(config).refuses(config)


def _refuses_rope(config: Config) -> str | None:
    """Frequencies that a model changes as it goes along are no function of its inputs."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested = [value for value in found.values() if isinstance(value, dict)]
    for parameters in nested or [found]:
        if parameters.get("rope_type", parameters.get("type")) == "dynamic":
            return (
                "its rotary frequencies are of the type dynamic: they depend on the longest text "
                "that was seen before, which a graph cannot know; train with the type yarn or "
                "linear instead"
            )
    return None
