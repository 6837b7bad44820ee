"""The README.md of an ONNX folder: what it holds, and how to run it in each runtime.

The text is readme_template.md; its programs are run by the tests, as they stand.
"""

import json
from pathlib import Path
from string import Template
from typing import Any

from tokenizers import Tokenizer

from exporters.onnx.plans import Plan
from exporters.provenance import provenance
from lrqat.foreign_text import in_code_span, in_markdown

_TEMPLATE = Path(__file__).with_name("readme_template.md")
_GENAI = Path(__file__).with_name("readme_genai.md")
_DEVICES = {"qnn": Path(__file__).with_name("readme_qnn.md")}


def readme(plan: Plan, folder: Path) -> str:
    """The text of README.md.

    Args:
        plan: the export.
        folder: where its other files lie.
    """
    facts = provenance(plan.checkpoint)
    entries = "\n".join(
        f"options.add_session_config_entry({json.dumps(key)}, {json.dumps(value)})"
        for key, value in plan.session_entries.items()
    )
    return Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=in_markdown(str(facts.get("lrqat.base_model", "A model"))),
        grids=str(facts["lrqat.grid"]).replace(",", ", "),
        graph=in_markdown(str(plan.checkpoint.config.get("model_type", "causal language model"))),
        opset=plan.options.opset,
        rounded=rounded_tables(plan),
        reference=_reference(facts),
        version=facts["lrqat.exporter_version"],
        sha256=facts["lrqat.checkpoint_sha256"],
        entries=entries,
        device=_device(plan, entries),
        js_options=json.dumps(_js_options(plan), indent=2),
        genai=_genai(plan, folder),
    )


def _device(plan: Plan, entries: str) -> str:
    """The section about the device that the preset is for, if it has one."""
    path = _DEVICES.get(plan.options.preset)
    text = "" if path is None else path.read_text(encoding="utf-8")
    return Template(text).substitute(entries=entries)


def _js_options(plan: Plan) -> dict[str, Any]:
    """What transformers.js has to be told; onnxruntime-web joins nested keys with dots."""
    entries = plan.session_entries.items()
    session = {key.removeprefix("session."): value for key, value in entries}
    device = {"device": "webgpu"} if plan.options.preset == "webgpu" else {}
    extra = {"session_options": {"extra": {"session": session}}}
    return {"subfolder": "", "dtype": "fp32", **device, **extra}


def _genai(plan: Plan, folder: Path) -> str:
    """The section about ONNX Runtime GenAI, or why there is none."""
    if plan.refuses_genai is not None:
        return f"ONNX Runtime GenAI does not take this model: {in_markdown(plan.refuses_genai)}.\n"
    prefix = _first_tokens(folder / "tokenizer.json")
    return Template(_GENAI.read_text(encoding="utf-8")).substitute(prefix=prefix)


def rounded_tables(plan: Plan) -> str:
    """A line for each weight that was rounded by the export and not by the training."""
    return "".join(
        f"The export rounded `{in_code_span(choice.module)}`, which was not trained on a grid, to "
        f"{choice.type} ({choice.bytes[choice.type]:,} bytes): {choice.changed:,} of its "
        f"values changed, with a relative error of {choice.error:.2g}.\n"
        for choice in plan.choices
        if choice.changed
    )


def _reference(facts: dict[str, Any]) -> str:
    """The perplexity that the reference had after training, if it was measured."""
    value = facts.get("lrqat.reference.perplexity")
    if value is None:
        return "Its perplexity was not measured after training."
    text = facts.get("lrqat.reference.data", "the text of its checkpoint")
    where = in_markdown(str(text))
    return f"The same weights in PyTorch have a perplexity of {value:.4f} on {where}."


def _first_tokens(path: Path) -> list[int]:
    """What the tokenizer puts before every text, and ONNX Runtime GenAI's encode does not."""
    if not path.is_file():
        return []
    return [int(token) for token in Tokenizer.from_file(str(path)).encode("").ids]
