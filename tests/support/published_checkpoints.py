"""Checkpoints that are published into a folder, to be changed."""

import json
import shutil

import pytest

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


@pytest.fixture
def copy(fused_checkpoint, tmp_path):
    return shutil.copytree(fused_checkpoint, tmp_path / "copy")


def manifest_of(folder):
    from lrqat.checkpoint import manifest

    return json.loads((folder / manifest.FILE_NAME).read_text())


def rewrite_manifest(folder, **changes):
    from lrqat.checkpoint import manifest

    (folder / manifest.FILE_NAME).write_text(json.dumps(manifest_of(folder) | changes))


def list_again(folder, *names):
    """Let the manifest agree with what is there, as a buggy or hostile writer would."""
    from lrqat.checkpoint import manifest

    names = {*manifest_of(folder)["files"], *names}
    rewrite_manifest(folder, files=manifest.describe_files(folder, sorted(names)))


def publish(folder, tokenizer, grid_for=None, training=None, base_model="small", licenses=None):
    from lrqat.models import fuse, preparation, surgery
    from lrqat.models.small_llama import make_untrained_model

    model = make_untrained_model(
        512, hidden=64, intermediate=96, layers=1, heads=4, kv_heads=2, seed=1
    )
    plan = surgery.plan_surgery(model, "q4_0", grid_for=grid_for)
    preparation.prepare(model, plan, preparation.Settings(rank=2, range_init="minmax"))
    base = {"name": base_model, "revision": None, "dtype": "float32"}
    return fuse.fuse(
        model,
        tokenizer,
        folder,
        plan=plan,
        base_model=base,
        training=training,
        licenses=licenses or {},
    )


@pytest.fixture
def tokenizer(tiny_model):
    from lrqat.models import hub

    return hub.load_tokenizer(tiny_model)
