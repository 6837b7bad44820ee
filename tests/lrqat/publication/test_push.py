"""`lrqat push`: what is shown, what is sent, and what is never sent."""

import json
import shutil

import huggingface_hub
import onnxruntime
import pytest
import yaml

from exporters import gguf
from lrqat.cards.measurements import PARITY
from lrqat.checkpoint.reader import Checkpoint
from lrqat.cli import push
from lrqat.errors import CheckpointError, OutputError, UserError
from lrqat.publication.measured import keep
from lrqat.publication.plan import plan_publication
from tests.support.commands import one_object
from tests.support.fake_hub import fake_hub
from tests.support.published_checkpoints import manifest_of, rewrite_manifest

REPO = "me/tiny-q4_0"
VERDICTS = {"L0": True, "L1": True, "L2": True}


@pytest.fixture
def hub(monkeypatch):
    constants = huggingface_hub.constants
    with fake_hub() as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", made.token)
        yield made


@pytest.fixture
def run(fused_checkpoint, onnx_folder, tmp_path):
    """A run's folder: checkpoint, states, a GGUF file with its Modelfile, an ONNX folder."""
    folder = tmp_path / "run"
    shutil.copytree(fused_checkpoint, folder)
    base = {"name": "owner/tiny", "revision": None, "dtype": "float32", "license": "apache-2.0"}
    rewrite_manifest(folder, base_model=base)
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-1" / "adapters.safetensors").write_bytes(b"state")
    (folder / "notes.txt").write_text("mine")
    (folder / "training.png").write_bytes(b"PNG")
    gguf.write(
        gguf.plan(Checkpoint.open(folder), gguf.Options(modelfile=True)), folder / "tiny.gguf"
    )
    shutil.copytree(onnx_folder("q4_0"), folder / "onnx")
    return folder


def everything(run):
    return [str(run), str(run / "tiny.gguf"), str(run / "onnx"), "--repo", REPO]


def test_nothing_is_sent_without_yes(run, hub, capfd):
    assert push.main(everything(run)) == 0
    said = capfd.readouterr().out
    assert hub.repositories == {}
    assert "nothing was sent; add --yes" in said
    assert "base_model: owner/tiny" in said
    assert f"{(run / 'tiny.gguf').stat().st_size:,}" in said
    assert hub.token not in said


def test_all_of_it_is_one_commit(run, hub, capfd):
    keep(run / "tiny.gguf", PARITY, {"runtime": "llama.cpp", "verdicts": VERDICTS, "kl": 1e-9})
    capfd.readouterr()
    assert push.main([*everything(run), "--private", "--yes", "--json"]) == 0
    result = one_object(capfd.readouterr().out)
    ((repository, revision, files, _),) = hub.commits
    assert (repository, revision) == (REPO, "main")
    assert result["commit"] == f"{hub.url}/{REPO}/commit/{1:040x}"
    assert hub.repositories[REPO]["visibility"] == "private"
    of_onnx = {f"onnx/{p.relative_to(run / 'onnx').as_posix()}"
               for p in (run / "onnx").rglob("*") if p.is_file()}  # fmt: skip
    own = {*manifest_of(run)["files"], "lrqat.json", "training.png", "tiny.gguf", "Modelfile"}
    assert files.keys() == own | of_onnx == result["files"].keys()
    assert not any("checkpoints" in name or "notes" in name for name in files)
    for name in ("lrqat.json", "config.json", "onnx/genai_config.json", "Modelfile"):
        assert files[name] == (run / name).read_bytes()
    card = files["README.md"].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["base_model"]) == ("apache-2.0", "owner/tiny")
    assert {"gguf", "onnx", "lr-qat"} <= set(front["tags"])
    tensors = len(gguf.verify(run / "tiny.gguf", Checkpoint.open(run)))
    assert f"{tensors:,} tensors, equal bit for bit" in card
    assert "| `tiny.gguf` | llama.cpp | pass | pass | pass |" in card
    assert 'pipeline("text-generation", "me/tiny-q4_0", {\n  "subfolder": "onnx"' in card


def test_an_onnx_folder_alone_has_its_configuration_at_the_top(run, hub):
    assert push.main([str(run / "onnx"), "--repo", REPO, "--revision", "web", "--yes"]) == 0
    assert hub.branches == [(REPO, "web")]
    ((_, revision, files, _),) = hub.commits
    assert revision == "web"
    assert files["config.json"] == files["onnx/config.json"]
    assert files["tokenizer.json"] == files["onnx/tokenizer.json"]
    assert "lrqat.json" not in files
    assert files.keys() >= {"onnx/model.onnx", "onnx/model.onnx_data", "generation_config.json"}
    # transformers.js reads the configuration of the repository's top, and looks in onnx/
    # (model-loader.js); Optimum takes **/*.onnx called model.onnx (modeling_decoder.py).
    said = json.loads(files["config.json"])["transformers.js_config"]
    assert said == {"dtype": "fp32", "use_external_data_format": {"model.onnx": 1}}
    assert yaml.safe_load(files["README.md"].decode().split("---\n")[1])["library_name"] == (
        "transformers.js"
    )


def test_the_repository_as_it_is_laid_out_loads_in_onnx_runtime(run, tmp_path):
    publication = plan_publication([run / "onnx"], REPO)
    for name, path in publication.files.items():
        (tmp_path / "repo" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, tmp_path / "repo" / name)
    session = onnxruntime.InferenceSession(str(tmp_path / "repo" / "onnx" / "model.onnx"))
    assert {"input_ids", "attention_mask", "position_ids"} < {i.name for i in session.get_inputs()}


def test_a_transfer_that_fails_publishes_nothing(run, hub):
    hub.refuses = "/lfs/"
    with pytest.raises(OutputError, match=f"nothing was published in {REPO}"):
        push.main([*everything(run), "--yes"])
    assert hub.commits == []
    hub.refuses = None
    assert push.main([*everything(run), "--yes"]) == 0
    assert len(hub.commits) == 1


def test_a_refused_token_is_named_and_not_shown(run, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody_else")
    with pytest.raises(OutputError, match="refuses the token") as refusal:
        push.main([str(run), "--repo", REPO, "--yes"])
    assert "hf auth login" in str(refusal.value)
    assert "hf_of_somebody_else" not in str(refusal.value)
    assert hub.commits == []


def test_a_licence_is_needed(run):
    rewrite_manifest(run, base_model={"name": "tiny"})
    with pytest.raises(UserError, match="licence of this model is not known"):
        plan_publication([run], REPO)
    found = plan_publication([run], REPO, license_="mit")
    assert "license: mit\n" in found.card
    with pytest.raises(UserError, match="no identifier"):
        plan_publication([run], REPO, license_="My Licence")


PATHS = {"posix": "/home/somebody/models/tiny", "windows": "C:\\models\\tiny", "home": "~/tiny"}


@pytest.mark.parametrize("local", PATHS.values(), ids=PATHS)
def test_paths_of_this_machine_stay_here(local, run):
    rewrite_manifest(run, training={"data": [{"name": local}]})
    with pytest.raises(OutputError, match=r"training\.data\.name is"):
        plan_publication([run], REPO)


def test_what_was_altered_or_is_of_another_model_is_refused(run, make_fused, tmp_path):
    other = tmp_path / "other.gguf"
    gguf.write(gguf.plan(Checkpoint.open(make_fused("q8_0"))), other)
    with pytest.raises(OutputError, match="is not what"):
        plan_publication([run, other], REPO)
    with pytest.raises(UserError, match="name that with --checkpoint"):
        plan_publication([other], REPO)
    with pytest.raises(UserError, match="several checkpoints"):
        plan_publication([run, make_fused("q8_0")], REPO)
    (run / "onnx" / "checkpoints").mkdir()
    with pytest.raises(OutputError, match="no part of an export"):
        plan_publication([run / "onnx"], REPO)
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"x": 1}))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        plan_publication([run], REPO)


@pytest.mark.parametrize("repo", ["tiny", "a/b/c", "../x", "a b/c", ""])
def test_a_repository_is_owner_and_name(repo, run):
    with pytest.raises(UserError, match="owner/name"):
        plan_publication([run], repo)
