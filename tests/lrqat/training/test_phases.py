"""What a whole run needs in memory: the arithmetic of its phases."""

import dataclasses

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from lrqat.models.stored_model import StoredModel, open_model
from lrqat.models.surgery import plan_surgery
from lrqat.training import memory_warnings, phases
from lrqat.training.config import TrainConfig
from lrqat.training.estimate import on_meta
from lrqat.training.machine import host_memory
from lrqat.training.meta_step import forward_bytes
from lrqat.training.plan import plan_training

MIB = 1 << 20
VOCABULARY, HIDDEN, CONTEXT = 32000, 64, 512


@pytest.fixture(scope="module")
def stored():
    """A model that is nearly all embedding: its logits are what counts."""
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}
    config = LlamaConfig(vocab_size=VOCABULARY, **sizes, **heads)
    return StoredModel(config, on_meta(LlamaForCausalLM, config, torch.float32), None)


@pytest.fixture
def estimate(stored):
    """Function from options to the estimate, of a process of 100 MiB."""

    def call(device="cpu", **options):
        given = {"model": "", "data": "", "output": "", "context": CONTEXT, "rank": 4}
        given |= {"batch_size": 1, "sequence_length": 64, "importance_tokens": 64}
        given |= {"stages": "model", "teacher": "none"}
        config = TrainConfig(**given | options).resolved()
        plan = plan_surgery(stored.skeleton, config.grid)
        return phases.estimate_run(
            stored, plan, config, dtype=torch.float32, device=device, libraries=100 * MIB
        )

    return call


def test_logits_of_a_window_and_their_probabilities_are_counted(estimate):
    """512 rows in float32, and two tables of the 255 scored ones in float64."""
    found = estimate().phases["evaluation"]
    model = 4 * VOCABULARY * HIDDEN
    logits, doubles = 4 * CONTEXT * VOCABULARY, 2 * 8 * 255 * VOCABULARY
    assert found == pytest.approx(model + logits + doubles, rel=0.1)
    # A teacher has logits too, and of both there are probabilities, their ratio, and a product.
    compared = estimate(teacher="self").phases["evaluation"]
    assert compared - found == pytest.approx(logits + 3 * 8 * 255 * VOCABULARY, rel=0.05)


def test_the_text_that_inputs_are_measured_on_is_counted_where_it_is_measured(estimate):
    rtn = {"method": "rtn", "context": 8}
    most = {"sequence_length": 2048, "importance_tokens": 1 << 16}
    logits = 4 * 2048 * VOCABULARY
    measured = estimate(**rtn, **most).phases["measuring"]
    assert measured > logits + 4 * VOCABULARY * HIDDEN
    assert estimate(**rtn, **most, range_init="l2").phases["measuring"] < measured - logits / 2


def test_the_fullest_phase_and_the_process_are_the_total(estimate):
    found = estimate(context=4096)
    assert found.fullest in ("measuring", "evaluation")
    libraries = found.libraries
    assert libraries == 100 * MIB + phases._LATER_LIBRARIES
    assert found.total == libraries + max(found.phases.values())
    shown = found.to_json()
    assert shown["total"] == max(shown["phases"].values())
    assert set(shown["phases"]) == {"loading", "measuring", "training", "evaluation", "writing"}
    assert estimate(batch_size=64, sequence_length=512, context=8).fullest == "training"


def test_a_method_that_trains_nothing_has_no_phase_of_training(estimate):
    assert "training" not in estimate(method="rtn").phases


def test_a_saved_state_copies_the_moments(estimate):
    """With --method full and few tokens they are more than a step makes."""
    found = estimate(method="full", sequence_length=2)
    moments = found.step.optimizer
    held = found.step.frozen + found.step.floating + found.step.adapters + found.step.scales
    assert found.phases["training"] >= held + 2 * moments + phases._LOST_ALWAYS


def test_on_a_gpu_the_process_and_probabilities_are_beside_it(estimate):
    cpu, gpu = estimate(), estimate(device="cuda")
    assert gpu.libraries == 0
    assert gpu.host == cpu.libraries + cpu.phases["loading"]
    assert gpu.phases["evaluation"] < cpu.phases["evaluation"]
    assert gpu.phases["training"] < cpu.phases["training"]


def test_a_forward_pass_has_its_logits_and_cache(stored):
    model = on_meta(LlamaForCausalLM, stored.config, torch.bfloat16)
    plain = forward_bytes(model, (2, 100))
    logits = 2 * 100 * VOCABULARY
    assert plain >= (2 + 4) * logits, "in bfloat16, and in float32 beside it"
    # At the end of the pass: keys and values of two layers.
    cache = 2 * 2 * 2 * 100 * HIDDEN * 2
    assert forward_bytes(model, (2, 100), cached=True) == pytest.approx(plain + cache, rel=1e-3)


def plan_of(folder, text_file, tmp_path, **options):
    paths = {"model": str(folder), "data": str(text_file), "output": str(tmp_path / "run")}
    sizes = {"sequence_length": 32, "context": 32, "rank": 4, "importance_tokens": 64}
    return plan_training(TrainConfig(**paths, **sizes, batch_size=1, **options)).memory


def test_a_model_of_another_type_than_its_files_is_a_copy(tiny_model, text_file, tmp_path):
    weights = open_model(str(tiny_model)).weights
    stored = sum(weights.on_meta(name).nbytes for name in weights.names)
    same = plan_of(tiny_model, text_file, tmp_path)
    assert same.phases["loading"] == stored, "the mapped file is the model"
    narrow = plan_of(tiny_model, text_file, tmp_path, dtype="bfloat16")
    assert narrow.phases["loading"] == pytest.approx(1.5 * stored, rel=0.05)


def test_too_little_memory_is_warned_of_with_what_would_help(estimate, monkeypatch):
    config = TrainConfig(model="", data="", output="").resolved()
    found = estimate(batch_size=64, sequence_length=512)
    monkeypatch.setattr(memory_warnings, "host_memory", lambda: found.total)
    assert memory_warnings.warnings_of(found, config, "cpu") == ()
    monkeypatch.setattr(memory_warnings, "host_memory", lambda: found.total - 1)
    (said,) = memory_warnings.warnings_of(found, config, "cpu")
    assert "GiB of memory (training), and this machine allows" in said
    assert "try --gradient-checkpointing, a smaller --batch-size" in said
    already = dataclasses.replace(config, gradient_checkpointing=True, batch_size=1)
    (said,) = memory_warnings.warnings_of(found, already, "cpu")
    assert "try a smaller --sequence-length" in said
    (said,) = memory_warnings.warnings_of(estimate(context=4096), config, "cpu") or ("",)
    assert "--context" in said or not said


def test_a_gpu_and_the_host_beside_it_are_warned_of_each(estimate, monkeypatch):
    config = TrainConfig(model="", data="", output="").resolved()
    found = estimate(device="cuda", batch_size=64, sequence_length=512)
    monkeypatch.setattr(memory_warnings, "device_memory", lambda device: found.total - 1)
    monkeypatch.setattr(memory_warnings, "host_memory", lambda: found.host - 1)
    gpu, host = memory_warnings.warnings_of(found, config, "cuda")
    assert "cuda has" in gpu
    assert "(loading), and this machine allows" in host
    assert "try --streamed" in host


def test_the_limit_of_a_container_counts(tmp_path):
    cgroups, own = tmp_path / "cgroup", tmp_path / "own"
    (cgroups / "a" / "b").mkdir(parents=True)
    (cgroups / "a" / "memory.max").write_text("1000000\n")
    (cgroups / "a" / "b" / "memory.max").write_text("max\n")
    own.write_text("0::/a/b\n")
    assert host_memory(cgroups, own) == 1000000
    (cgroups / "a" / "memory.max").write_text("max\n")
    machine = host_memory(cgroups, own)
    assert machine > 1000000
    assert machine == host_memory(cgroups, tmp_path / "none")
    (cgroups / "memory" / "a").mkdir(parents=True)
    (cgroups / "memory" / "a" / "memory.limit_in_bytes").write_text("2000000\n")
    own.write_text("5:cpu,memory:/a\n1:name=systemd:/a\n")
    assert host_memory(cgroups, own) == 2000000


def test_blocks_are_a_phase_of_their_own(estimate):
    """Five float32 of each of a block's weights, its hidden states twice, and what it keeps."""
    assert "blocks" not in estimate().phases
    few = estimate(stages="blocks", block_tokens=4096)
    assert "training" not in few.phases
    both = estimate(stages="blocks,model").phases
    assert both.keys() <= memory_warnings._REMEDIES.keys(), "every phase has its remedies"
    more = estimate(stages="blocks", block_tokens=8192)
    assert more.phases["blocks"] - few.phases["blocks"] == 2 * 2 * 4096 * HIDDEN
