"""The model card: README.md of a checkpoint, and of a repository with what was made of it.

Every figure in it was counted or measured, and what was not measured has no figure.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lrqat
from lrqat.cards.commands import CHECKPOINT, GENAI, GGUF, ONNX, Artefact, commands
from lrqat.cards.front_matter import write_front_matter
from lrqat.cards.measurements import BASE, PARITY
from lrqat.cards.origin import Origin, is_repository, own_tags
from lrqat.cards.text_facts import trained_on
from lrqat.foreign_text import in_code_span, in_markdown
from lrqat.grids.grid import find_grid
from lrqat.layers.methods import METHODS

_TAGS = {
    CHECKPOINT: ("compressed-tensors",),
    GGUF: ("gguf", "llama.cpp"),
    ONNX: ("onnx", "transformers.js"),
    GENAI: ("onnx", "onnxruntime-genai"),
}
_LIBRARY = {CHECKPOINT: "transformers", GGUF: "gguf", ONNX: "transformers.js"}


def model_card(
    manifest: Mapping[str, Any],
    artefacts: Sequence[Artefact],
    *,
    repository: str | None = None,
    license_: str | None = None,
    modelfile: bool = False,
) -> str:
    """The text of README.md.

    Args:
        manifest: lrqat.json of the checkpoint; its names may be anybody's.
        artefacts: what the card is of.
        repository: owner/name where it will be, or None.
        license_: in place of the source's.
        modelfile: whether a Modelfile for Ollama lies there too.
    """
    sections = [
        _introduction(manifest),
        _grids(manifest),
        _files(artefacts),
        _in_pytorch(manifest),
        _in_runtimes(artefacts),
        _against_base(artefacts),
        trained_on(manifest),
        f"## Run it\n\n{commands(list(artefacts), repository, modelfile)}",
    ]
    head = write_front_matter(_head(manifest, artefacts, license_))
    return head + "\n".join(section for section in sections if section)


def _head(
    manifest: Mapping[str, Any], artefacts: Sequence[Artefact], license_: str | None
) -> dict[str, Any]:
    origin = Origin.of_manifest(manifest)
    kinds = [artefact.kind for artefact in artefacts]
    own = license_ is None
    return {
        "license": license_ or origin.license,
        "license_name": origin.license_name if own else None,
        "license_link": origin.license_link if own else None,
        "language": list(origin.languages),
        "base_model": origin.repository,
        "base_model_relation": "quantized" if origin.repository else None,
        "datasets": [name for name in _sources(manifest) if is_repository(name)],
        "pipeline_tag": "text-generation",
        "library_name": next((_LIBRARY[kind] for kind in kinds if kind in _LIBRARY), None),
        "tags": [
            *own_tags(manifest),
            *dict.fromkeys(tag for kind in kinds for tag in _TAGS[kind]),
        ],
    }


def _method(manifest: Mapping[str, Any]) -> str | None:
    """The method, None where it is not known."""
    training = manifest.get("training")
    said = training.get("method") if isinstance(training, dict) else None
    return said if isinstance(said, str) and said in METHODS else None


def _imported(manifest: Mapping[str, Any]) -> bool:
    """Whether the weights were on their grids before lrqat read them."""
    return "imported" in (manifest.get("training") or {})


def _sources(manifest: Mapping[str, Any]) -> list[str]:
    training = manifest.get("training")
    data = training.get("data") if isinstance(training, dict) else None
    return [name for name in (data if isinstance(data, list) else [data]) if isinstance(name, str)]


def _introduction(manifest: Mapping[str, Any]) -> str:
    base = manifest["base_model"].get("name")
    name = base if isinstance(base, str) and base else "A model"
    method = _method(manifest)
    made = METHODS[method].outcome if method else "imported" if _imported(manifest) else "made"
    how = "" if method in (None, "lr-qat") else f" (`--method {method}`)"
    grids = ", ".join(sorted({str(entry["grid"]) for entry in manifest["tensors"].values()}))
    return f"""# {in_markdown(name)}, weights on {in_markdown(grids)}

`{in_code_span(name)}` with its weights on the grid `{in_code_span(grids)}`, {made} by lrqat
{lrqat.__version__}{how}. Every file here holds exactly the integers and scales of the checkpoint;
nothing was rounded again. `lrqat.json` records the grid of every weight, the settings of the run,
and the sha256 of every file.
"""


def _grids(manifest: Mapping[str, Any]) -> str:
    weights: dict[str, int] = defaultdict(int)
    bits: dict[str, float] = defaultdict(float)
    tensors: dict[str, int] = defaultdict(int)
    for entry in manifest["tensors"].values():
        grid, count = find_grid(entry["grid"]), math.prod(entry["shape"])
        weights[grid.name] += count
        bits[grid.name] += count * grid.bits_per_weight(entry["shape"][1])
        tensors[grid.name] += 1
    rows = (
        (f"`{name}`", tensors[name], f"{weights[name]:,}", f"{bits[name] / weights[name]:.3f}",
         f"{bits[name] / 8:,.0f}")
        for name in sorted(weights, key=lambda name: -weights[name])
    )  # fmt: skip
    columns = ("grid", "tensors", "weights", "bits per weight", "bytes")
    return f"## Grids\n\n{_table(columns, rows)}"


def _files(artefacts: Sequence[Artefact]) -> str:
    rows = (
        (f"`{in_code_span(each.name)}`", f"{each.bytes:,}", f"{each.bits_per_weight:.3f}",
         "" if each.compared is None else f"{each.compared:,} tensors, equal bit for bit")
        for each in artefacts
        if each.bytes
    )  # fmt: skip
    columns = ("file", "bytes", "bits per weight", "compared with the checkpoint")
    return f"## Files\n\n{_table(columns, rows)}"


def _in_pytorch(manifest: Mapping[str, Any]) -> str:
    """Figures of the fake-quant model and its base, if they were measured at the end of the run."""
    found = manifest.get("reference")
    said: Mapping[str, Any] = found if isinstance(found, dict) else {}
    if not _is_number(said.get("perplexity")):
        return ""
    rows = [("perplexity", _number(said["perplexity"], ".4f"))]
    rows += [
        (title, _number(said[key], form))
        for key, title, form in (
            ("base_perplexity", "perplexity in full precision", ".4f"),
            ("kl", f"KL from {_teacher(said)}", ".5f"),
            ("same_top", "same most likely token", ".2%"),
        )
        if _is_number(said.get(key))
    ]
    text = f"{said.get('tokens')} tokens of {said.get('data')}, in windows of {said.get('context')}"
    return (
        f"## Measured in PyTorch\n\nIn float32, on {in_markdown(text)}, which was not learned.\n\n"
        f"{_table(('', 'value'), rows)}"
    )


def _teacher(said: Mapping[str, Any]) -> str:
    name = said.get("teacher")
    return "full precision" if name in (None, "self", "auto") else in_markdown(str(name))


def _in_runtimes(artefacts: Sequence[Artefact]) -> str:
    rows = [
        (f"`{in_code_span(each.name)}`", in_markdown(str(found.get("runtime"))),
         *_verdicts(found.get("verdicts")), _number(found.get("perplexity"), ".4f"),
         _number(found.get("reference_perplexity"), ".4f"), _number(found.get("kl"), ".1e"),
         in_markdown(f"{found.get('tokens')} of {found.get('text')}"))
        for each in artefacts
        if (found := each.measured.get(PARITY)) is not None
    ]  # fmt: skip
    if not rows:
        return ""
    columns = ("file", "runtime", "L0 bytes", "L1 graph", "L2 runtime", "perplexity",
               "PyTorch's", "KL from PyTorch's", "tokens")  # fmt: skip
    return f"## Proved in its runtime\n\nBy `lrqat parity`.\n\n{_table(columns, rows)}"


def _against_base(artefacts: Sequence[Artefact]) -> str:
    rows = [
        (f"`{in_code_span(each.name)}`", in_markdown(str(found.get("runtime"))),
         _number(found.get("perplexity"), ".4f"), _number(found.get("base_perplexity"), ".4f"),
         _number(found.get("kl"), ".5f"), _number(found.get("same_top"), ".2%"),
         in_markdown(f"{found.get('tokens')} of {found.get('text')}"))
        for each in artefacts
        if (found := each.measured.get(BASE)) is not None
    ]  # fmt: skip
    if not rows:
        return ""
    columns = ("file", "runtime", "perplexity", "of the base", "KL from the base", "same top token",
               "tokens")  # fmt: skip
    return f"## Against the model it was made from\n\n{_table(columns, rows)}"


def _verdicts(found: Any) -> list[str]:
    said = found if isinstance(found, dict) else {}
    words: dict[Any, str] = {True: "pass", False: "FAIL"}
    return [
        words[verdict] if isinstance(verdict := said.get(level), bool) else ""
        for level in ("L0", "L1", "L2")
    ]


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _number(value: Any, form: str) -> str:
    return format(float(value), form) if _is_number(value) else ""


def _table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)
