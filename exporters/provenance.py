"""Where an exported file comes from: the facts that every format embeds as `lrqat.*`.

Nothing here depends on the time or the machine, so the same checkpoint gives the same bytes.
"""

from lrqat import __version__
from lrqat.checkpoint.manifest import FILE_NAME, sha256_of
from lrqat.checkpoint.reader import Checkpoint

_REFERENCE = {
    "perplexity": float,
    "standard_error": float,
    "tokens": int,
    "context": int,
    "rule": str,
    "data": str,
    "data_sha256": str,
}


def provenance(checkpoint: Checkpoint) -> dict[str, str | int | float]:
    """Facts by key, texts and numbers; what lrqat.json does not say, or says oddly, is left out."""
    manifest = checkpoint.manifest
    tool, base = manifest["tool"], manifest["base_model"]
    training, reference = manifest.get("training"), manifest.get("reference")
    facts: dict[str, object] = {
        "lrqat.exporter_version": __version__,
        "lrqat.version": tool.get("version"),
        "lrqat.git_commit": tool.get("git_commit"),
        "lrqat.grid": ",".join(sorted(checkpoint.grids)),
        "lrqat.base_model": base.get("name"),
        "lrqat.base_model_revision": base.get("revision"),
        "lrqat.data_sha256": training.get("data_sha256") if isinstance(training, dict) else None,
        "lrqat.checkpoint_sha256": sha256_of(checkpoint.path / FILE_NAME),
    }
    found = {key: value for key, value in facts.items() if isinstance(value, str) and value}
    measured = reference if isinstance(reference, dict) else {}
    return found | {
        f"lrqat.reference.{key}": measured[key]
        for key, kind in _REFERENCE.items()
        if _plausible(measured.get(key), kind)
    }


def _plausible(value: object, kind: type) -> bool:
    """Whether a fact is what it should be; the exact type, since True is an int to isinstance."""
    if type(value) is not kind or value == "":
        return False
    return not isinstance(value, int) or 0 <= value < 2**64
