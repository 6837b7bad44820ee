"""Tiny models, fused checkpoints and exports, made once a session where they are wanted.

Here and in the other plugins nothing is imported before a fixture is: workers start sooner.
"""

import gc
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# One thread a worker, of which pytest-xdist starts one for every core: threads of several that wait
# for each other on the same cores take longer than one. Before anybody imports torch or numpy; and
# the runtimes take as many as Python says that there are cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.cpu_count = lambda: 1


@pytest.fixture(scope="session")
def text():
    """Python source of the standard library, some 300 kB: text that every machine has."""
    folder = Path(os.__file__).parent
    names = ("argparse", "ast", "collections/__init__", "dataclasses", "inspect", "typing")
    return "\n".join((folder / f"{name}.py").read_text(encoding="utf-8") for name in names)


@pytest.fixture(scope="session")
def text_file(text, tmp_path_factory):
    """A fifth of it: a short run reads no more, and every run has to make tokens of all."""
    path = tmp_path_factory.mktemp("text") / "source.txt"
    path.write_text(text[:60_000], encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_model(text, tmp_path_factory):
    """Folder of a random two-layer Llama with a byte-level BPE tokenizer of 512 tokens."""
    from lrqat.models.small_llama import make_tokenizer, make_untrained_model

    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    tokenizer = make_tokenizer([text], vocabulary=512)
    model = make_untrained_model(
        len(tokenizer), hidden=128, intermediate=256, layers=2, heads=4, kv_heads=2, seed=0
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_fused(tiny_model, tmp_path_factory):
    """Function grid -> folder of a fused checkpoint whose A and s have been moved at random."""
    import torch

    from lrqat.models import fuse, hub, preparation, surgery

    made = {}

    def make(grid, source=tiny_model, keep=()):
        key = (grid, source, tuple(keep))
        if key not in made:
            torch.manual_seed(0)
            model = hub.load_model(str(source), dtype=torch.float32)
            plan = surgery.plan_surgery(model, grid, keep)
            preparation.prepare(model, plan, preparation.Settings(rank=4))
            for _, layer in preparation.quantized_layers(model):
                torch.nn.init.normal_(layer.lora_a, std=2.0)
                layer.scale.data.mul_(torch.empty_like(layer.scale).uniform_(0.9, 1.1))
            folder = tmp_path_factory.mktemp("fused") / grid
            base = {"name": source.name, "revision": None, "dtype": "float32"}
            fuse.fuse(model, hub.load_tokenizer(source), folder, plan=plan, base_model=base)
            made[key] = folder
        return made[key]

    return make


@pytest.fixture(scope="session")
def make_small(tiny_model, tmp_path_factory):
    """Function of grids and sizes -> fused checkpoint of a one-layer Llama, made in a second.

    By default its rows are whole blocks of every llama.cpp type.
    """
    import torch

    from lrqat.checkpoint.reader import Checkpoint
    from lrqat.models import fuse, hub, preparation, surgery
    from lrqat.models.small_llama import make_untrained_model

    made = {}

    def make(grid, grid_for=None, hidden=256, intermediate=512, tied=False):
        key = (grid, str(grid_for), hidden, intermediate, tied)
        if key not in made:
            sizes = {"hidden": hidden, "intermediate": intermediate, "layers": 1, "heads": 4}
            model = make_untrained_model(512, **sizes, kv_heads=2, seed=1, tied=tied)
            plan = surgery.plan_surgery(model, grid, grid_for=grid_for)
            preparation.prepare(model, plan, preparation.Settings(rank=2, range_init="minmax"))
            for _, layer in preparation.quantized_layers(model):
                torch.nn.init.normal_(layer.lora_a, std=2.0)
            folder = tmp_path_factory.mktemp("small") / "fused"
            base = {"name": "small", "revision": None, "dtype": "float32"}
            fuse.fuse(model, hub.load_tokenizer(tiny_model), folder, plan=plan, base_model=base)
            made[key] = Checkpoint.open(folder)
        return made[key]

    return make


@pytest.fixture(scope="session")
def fused_checkpoint(make_fused):
    """Folder of a tiny fused q4_0 checkpoint."""
    return make_fused("q4_0")


@pytest.fixture(scope="session")
def onnx_folder(make_fused, tmp_path_factory):
    """Function grid -> ONNX folder of `make_fused(grid)`; made once, not to be changed."""
    from exporters import onnx
    from lrqat.checkpoint.reader import Checkpoint
    from tests.support.onnx_exports import write_onnx

    made = {}

    def make(grid):
        if grid not in made:
            made[grid] = tmp_path_factory.mktemp("onnx") / grid
            write_onnx(onnx.plan(Checkpoint.open(make_fused(grid))), made[grid])
        return made[grid]

    return make


def pytest_collection_finish():
    """Leave what the libraries brought out of later collections, each of which took 0.5 s."""
    gc.collect()
    gc.freeze()
