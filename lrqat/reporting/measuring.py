"""KL of every token of the models that were given, where nobody has measured it yet."""

from collections.abc import Callable

from lrqat.evaluation.perplexity import Progress
from lrqat.reporting.fields import Fields
from lrqat.reporting.json_files import read_tokens
from lrqat.reporting.material import Material, owner


def measure_missing(
    material: Material,
    base: str,
    text: str,
    *,
    context: int,
    limit: int | None,
    progress: Callable[[str], Progress],
) -> None:
    """Add the KL from `base` of each model that can be run and that has none.

    Args:
        material: what was given; `tokens` grows.
        base: folder, file or hub id.
        text: the evaluation text.
        context: tokens per window.
        limit: windows at most; None: all.
        progress: name of a model to what wraps its windows.

    Raises:
        UserError: see `lrqat.runtimes.divergence.measure_divergence`.
    """
    from lrqat.runtimes.divergence import measure_divergence

    paths = [model.path for model in material.models]
    known = {owner(found.path, paths) for found in material.tokens}
    for model in material.models:
        if model.path not in known and model.bytes:
            found = measure_divergence(
                model.path, base, text, context=context, limit=limit, progress=progress(model.path)
            )
            # As reading the file of `lrqat evaluate --tokens` would give it.
            measured = read_tokens(Fields(found.with_tokens(), model.path), model.path)
            material.tokens.append(measured)
