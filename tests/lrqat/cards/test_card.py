"""The model card: what the hub reads, and that it says what is so and nothing else."""

import json

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt

from lrqat.cards.card import model_card
from lrqat.cards.checkpoint import describe_checkpoint
from lrqat.cards.commands import GGUF, ONNX, Artefact
from lrqat.cards.front_matter import read_front_matter, write_front_matter
from lrqat.cards.measurements import PARITY, digest_of, home_of, record, recorded
from lrqat.cards.origin import Origin, repository_in
from lrqat.checkpoint.reader import Checkpoint
from lrqat.models.source_facts import source_facts

REFERENCE = {"perplexity": 12.5, "base_perplexity": 12.0, "kl": 0.0123456, "same_top": 0.97,
             "teacher": "self", "tokens": 1000, "context": 64, "data": "held-out.txt"}  # fmt: skip
PROOF = {"runtime": "llama.cpp", "verdicts": {"L0": True, "L1": True, "L2": False}, "kl": 1e-5,
         "perplexity": 12.51, "reference_perplexity": 12.5, "tokens": 9, "text": "a"}  # fmt: skip


@pytest.fixture
def checkpoint(fused_checkpoint):
    opened = Checkpoint.open(fused_checkpoint)
    opened.manifest["base_model"] |= {"name": "owner/Tiny-5M", "license": "other",
        "license_name": "mine", "license_link": "LICENSE", "languages": ["en", "no"]}  # fmt: skip
    return opened


def card_of(checkpoint, *more, **options):
    return model_card(checkpoint.manifest, [describe_checkpoint(checkpoint), *more], **options)


def test_the_hub_reads_the_front_matter(checkpoint):
    """By huggingface_hub's own class."""
    checkpoint.manifest["training"] = {"data": ["owner/rows", "b.txt"], "tokens": 5}
    found = ModelCard(card_of(checkpoint)).data.to_dict()
    assert found == {
        "license": "other", "license_name": "mine", "license_link": "LICENSE",
        "language": ["en", "no"], "base_model": "owner/Tiny-5M",
        "base_model_relation": "quantized", "datasets": ["owner/rows"],
        "pipeline_tag": "text-generation", "library_name": "transformers",
        "tags": ["lr-qat", "compressed-tensors"],
    }  # fmt: skip


def test_what_is_not_known_or_not_measured_is_not_said(fused_checkpoint):
    card = card_of(Checkpoint.open(fused_checkpoint))
    front = yaml.safe_load(card.split("---")[1])
    assert not front.keys() & {"license", "base_model", "base_model_relation", "language"}
    for word in ("Measured", "Proved", "Against", "pass", "KL"):
        assert word not in card, word


def test_the_card_has_the_figures_that_were_counted_and_measured(checkpoint):
    checkpoint.manifest |= {
        "reference": REFERENCE,
        "training": {
            "data": "a.txt",
            "data_sha256": "ab12",
            "tokens": 4096,
            "steps": 2,
            "method": "lr-qat",
        },
    }
    proved = Artefact(GGUF, "m.gguf", 1234, 4.5, 21, measured={PARITY: PROOF})
    card = card_of(checkpoint, proved, repository="me/tiny")
    weights = sum(a * b for a, b in (e["shape"] for e in checkpoint.manifest["tensors"].values()))
    count = len(checkpoint.quantized_names)
    assert f"| `q4_0` | {count} | {weights:,} | 4.500 | {weights * 9 // 16:,} |" in card
    assert "| `m.gguf` | 1,234 | 4.500 | 21 tensors, equal bit for bit |" in card
    assert "| KL from full precision | 0.01235 |" in card
    assert "| same most likely token | 97.00% |" in card
    assert "| `m.gguf` | llama.cpp | pass | pass | FAIL | 12.5100 | 12.5000 | 1.0e-05 |" in card
    assert "\n4,096 tokens of:" in card
    checkpoint.manifest["training"]["tokens_of_blocks"] = 204800
    both = card_of(checkpoint, proved, repository="me/tiny")
    assert "\n204,800 tokens block by block, and 4,096 tokens of:" in both
    assert "- `a.txt`, sha256 `ab12`" in card
    stored = sum((checkpoint.path / n).stat().st_size for n in checkpoint.files if "model" in n)
    assert f"| `this folder` | {stored:,} |" in card
    assert "llama-cli -hf me/tiny -hff m.gguf" in card
    assert "ollama run hf.co/me/tiny:m.gguf" in card


def test_programs_in_the_card_are_valid_python(checkpoint):
    card = card_of(checkpoint, Artefact(ONNX, "onnx", 1, 4.5), repository="me/tiny")
    programs = card.split("```python\n")[1:]
    assert len(programs) == 2
    for program in programs:
        compile(program.split("```")[0], "card", "exec")


def test_names_of_strangers_stay_names(checkpoint):
    bad = "x`\n---\nlicense: mit\n<script>alert(1)</script>|[a](http://b)"
    checkpoint.manifest["base_model"] = {"name": bad, "license": "MIT: yes\n", "languages": [bad]}
    checkpoint.manifest["training"] = {"data": bad, "tokens": 1, "data_sha256": bad, "stages": bad}
    checkpoint.manifest["reference"] = REFERENCE | {"data": bad, "teacher": bad}
    proof = PROOF | {"runtime": bad, "text": bad, "perplexity": "1", "verdicts": {"L0": bad}}
    card = card_of(checkpoint, Artefact(GGUF, "m.gguf", 1, 1.0, measured={PARITY: proof}))
    assert "license" not in yaml.safe_load(card.split("---\n")[1])
    shown = MarkdownIt("commonmark").enable("table").render(card.split("---\n", 2)[2])
    assert "<script" not in shown
    assert 'http://b"' not in shown, "no link"
    assert max(card.count(f"\n{line}\n") for line in ("license: mit", "---")) == 1


@pytest.mark.parametrize(
    "card",
    [
        "", "no front matter", "---\nlicense: mit", "---\n: : :\n---\n", "---\n- a\n---\n",
        "---\n" + "[" * 5000 + "\n---\n", "---\nlicense: !!python/object:os.system [x]\n---\n",
        "---\na: &a [x]\nlicense: {b: *a}\n---\n", "---\nlicense: \"\\x1b[31m\"\n---\n",
    ],
)  # fmt: skip
def test_what_cannot_be_read_says_nothing(card):
    assert read_front_matter(card).get("license") in (None, ["x"])
    assert Origin.of_card({"license": ["x y"]}).license is None


def test_norwegian_is_a_language(tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\nlanguage:\n- no\n---\n# A model")
    found = source_facts(str(tmp_path))
    assert (found.license, found.languages) == ("apache-2.0", ("no",))
    again = write_front_matter({"language": ["no"], "empty": None})
    assert read_front_matter(again) == {"language": ["no"]}
    assert Origin.of_manifest({"base_model": found.to_manifest()}) == found


def test_addresses_of_the_hub():
    assert repository_in("https://huggingface.co/me/model/") == "me/model"
    assert repository_in("me/model") == "me/model"
    for other in ("https://example.com/me/model", "model", "../model", "me/model/tree"):
        assert repository_in(other) is None, other


def test_a_measurement_is_of_the_bytes_that_were_measured(fused_checkpoint, tmp_path):
    (tmp_path / "lrqat.json").write_text("{}")
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    assert home_of(file) == home_of(tmp_path) == tmp_path
    record(tmp_path, PARITY, digest_of([file]), {"kl": 1.0})
    record(tmp_path, PARITY, "other", {"kl": 2.0})
    assert recorded(tmp_path, PARITY, digest_of([file])) == {"kl": 1.0}
    file.write_bytes(b"GGUF2")
    assert recorded(tmp_path, PARITY, digest_of([file])) is None
    (tmp_path / "measured.json").write_text(json.dumps({PARITY: [1]}))
    assert recorded(tmp_path, PARITY, "other") is None
