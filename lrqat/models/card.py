"""The model card of a fused checkpoint: its README.md."""

from collections.abc import Iterable

import lrqat
from lrqat.foreign_text import in_code_span
from lrqat.layers.methods import METHODS

_CARD = """---
library_name: transformers
tags: [{tags}]
---
`{base}` with its weights on the grid `{grid}`, {made} by lrqat {version}{how}.

An export holds exactly the integers and scales of this folder. `lrqat.json` records the grid of
every weight, the settings of the run, the reference perplexity and the sha256 of every file.

{loading}

For other runtimes, `pip install 'lrqat[gguf,onnx]'`, and in this folder

    lrqat export . --format gguf                               # llama.cpp
    lrqat export . --format onnx                               # ONNX Runtime
"""
_WITH_TRANSFORMERS = """    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(".")          # float32: every weight is exact"""
_WITH_LRQAT = """compressed-tensors has no form for what is on a grid here, so lrqat loads it:

    from lrqat import Checkpoint, load_reference
    model = load_reference(Checkpoint.open("."))               # float32: every weight is exact"""


def model_card(
    grids: Iterable[str],
    base: str,
    loads_with_transformers: bool,
    method: str | None = None,
    made: str = "made",
) -> str:
    """The text of README.md.

    Args:
        grids: names of the grids of all weights.
        base: name of the model that its weights come from.
        loads_with_transformers: whether transformers loads everything on a grid exactly.
        method: the name in `METHODS`, None where it is not known.
        made: what was done to its weights, where no method says it.
    """
    trained = method is not None or made == "made"
    made = made if method is None else METHODS[method].outcome
    tags = ["lr-qat"] if trained and method in (None, "lr-qat") else []
    return _CARD.format(
        grid=", ".join(sorted(set(grids))),
        base=in_code_span(base),
        made=made,
        how="" if method in (None, "lr-qat") else f" (`--method {method}`)",
        tags=", ".join([*tags, "compressed-tensors"]),
        version=lrqat.__version__,
        loading=_WITH_TRANSFORMERS if loads_with_transformers else _WITH_LRQAT,
    )
