"""Training from end to end: load, plan, measure, prepare, train, measure, fuse.

    plan = plan_training(config)     # from configuration files alone; what --dry-run prints
    report = train(config)           # writes the fused checkpoint into config.output

While it runs, resumable states are kept in `output/checkpoints`; the fused checkpoint appears in
`output` at the end, all its files together.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PrinterCallback, set_seed

from lrqat import hub
from lrqat.callbacks import GradientGuard, ProgressLine, share_changed
from lrqat.config import TrainConfig
from lrqat.data import TokenBlocks, documents, pack, split_held_out
from lrqat.errors import NonFiniteLossError, OutputError, UserError
from lrqat.fuse import fuse
from lrqat.losses import Objective
from lrqat.manifest import FILE_NAME, sha256_of
from lrqat.perplexity import RULE, Perplexity, Windows, compare, perplexity
from lrqat.plan import TrainingPlan, plan_training
from lrqat.plots import plot_training
from lrqat.publish import explain_os_errors, refuse_existing
from lrqat.reference import torch_logits
from lrqat.report import TrainReport
from lrqat.resume import STATES, find_state, record_run
from lrqat.surgery import prepare
from lrqat.text import EvaluationText, encode, window_bos
from lrqat.trainer import LRQATTrainer, training_arguments

Say = Callable[[str], None]


def train(
    config: TrainConfig,
    *,
    overwrite: bool = False,
    resume: str | None = None,
    say: Say = lambda message: None,
) -> TrainReport:
    """Train `config.model` on its grid and write the fused checkpoint.

    Args:
        config: the settings.
        overwrite: replace a fused checkpoint that is already in `config.output`.
        resume: "auto" for the last saved state of `config.output`, or the folder of a state.
        say: receives progress messages, one line each.

    Raises:
        UserError: bad input, before anything is written; a diverged run (`NonFiniteLossError`),
            whose last good state has been saved; a full disk.
    """
    output = Path(config.output)
    if resume is None:
        _refuse_unfinished(output, overwrite)
        refuse_existing(output, overwrite)
    plan = plan_training(config)
    state_folder = output / STATES
    state = find_state(state_folder, resume, config)
    set_seed(config.seed)
    tokenizer = hub.load_tokenizer(config.model, trust_remote_code=config.trust_remote_code)
    blocks, evaluation, windows = _text(config, tokenizer, say)
    model = hub.load_model(
        config.model, dtype=plan.dtype, trust_remote_code=config.trust_remote_code
    ).to(plan.device)
    base = _describe_base(config, model)
    before, _ = _measure(model, windows, "full precision", say)
    teacher = _teacher(config, plan)
    _prepare(model, plan, config)
    rounded, kl_rounded = _measure(model, windows, "round-to-nearest", say, teacher)
    with explain_os_errors(output):
        if state is None:  # states of an earlier run must not be taken for this one's
            shutil.rmtree(state_folder, ignore_errors=True)
        record_run(state_folder, config)
        progress, seconds = _fit(
            model, blocks, Objective(teacher), config, plan, state_folder, state
        )
    _to_float32(model.eval())
    after, kl_after = _measure(model, windows, "trained", say, teacher)
    changed = share_changed(model)
    report = TrainReport(output, before, rounded, after, kl_rounded, kl_after, changed, seconds)
    fuse(
        model,
        tokenizer,
        output,
        plan=plan.surgery,
        base_model=base,
        training=_describe_training(config),
        reference=_describe_reference(after, config, evaluation),
    )
    with explain_os_errors(output):
        title = f"{base['name']}, {config.grid}"
        plot_training(progress.history, output / "training.png", title)
    return report


def _prepare(model: Any, plan: TrainingPlan, config: TrainConfig) -> None:
    set_seed(config.seed)  # A and B depend on the seed alone, not on what ran before
    prepare(
        model,
        plan.surgery,
        rank=config.rank,
        alpha=config.alpha,
        phi=config.phi,
        range_init=config.range_init,
        progress=lambda names: tqdm(names, desc="preparing", unit="layer"),
    )


def _refuse_unfinished(output: Path, overwrite: bool) -> None:
    if not overwrite and (output / STATES).is_dir() and not (output / FILE_NAME).is_file():
        raise OutputError(
            f"{output} holds a run that did not finish; continue it with --resume auto, or start "
            "anew with --overwrite"
        )


def _text(
    config: TrainConfig, tokenizer: Any, say: Say
) -> tuple[TokenBlocks, EvaluationText, Windows]:
    texts = documents(config.data, tokenizer)
    if config.eval_data:
        evaluation = EvaluationText.read(config.eval_data)
    else:
        held_out, texts = split_held_out(texts)
        evaluation = EvaluationText.of(f"start of {Path(config.data).name}", held_out)
    windows = Windows.cut(
        encode(tokenizer, evaluation.text),
        config.context,
        window_bos(tokenizer),
        config.eval_windows,
    )
    with tqdm(desc="tokenising", unit="token", unit_scale=True) as bar:
        blocks = pack(
            texts,
            tokenizer,
            length=config.sequence_length,
            needed_tokens=config.steps * config.tokens_per_step,
            progress=lambda total: bar.update(total - bar.n),
        )
    say(
        f"text: {len(blocks):,} blocks of {config.sequence_length} tokens to train on; "
        f"{windows.scored_tokens:,} scored tokens of {evaluation.name}"
    )
    return blocks, evaluation, windows


def _fit(
    model: Any,
    blocks: TokenBlocks,
    objective: Objective,
    config: TrainConfig,
    plan: TrainingPlan,
    state_folder: Path,
    state: Path | None,
) -> tuple[ProgressLine, float]:
    """Run the Trainer. Returns what it showed, and the seconds it took."""
    progress, guard = ProgressLine(model, config.tokens_per_step), GradientGuard()
    trainer = LRQATTrainer(
        model=model,
        args=training_arguments(config, state_folder, use_cpu=plan.device == "cpu"),
        train_dataset=blocks,
        objective=objective,
        scale_learning_rate=config.scale_learning_rate,
        callbacks=[progress, guard],
    )
    trainer.remove_callback(PrinterCallback)
    guard.trainer = trainer
    start = time.monotonic()
    try:
        trainer.train(resume_from_checkpoint=str(state) if state else None)
    except NonFiniteLossError as error:
        saved = trainer.save_state_now()
        raise NonFiniteLossError(
            f"{error}; the last good state is kept in {saved}. Start again with a lower "
            f"--learning-rate (now {config.learning_rate:g}) or --scale-learning-rate (now "
            f"{config.scale_learning_rate:g})"
        ) from None
    finally:
        progress.close()
    return progress, time.monotonic() - start


def _measure(
    model: Any, windows: Windows, what: str, say: Say, teacher: Any = None
) -> tuple[Perplexity, float | None]:
    """Perplexity, and with a teacher the mean KL from it."""

    def progress(items: Any) -> Any:
        return tqdm(items, desc=what, unit="window")

    logits = torch_logits(model.eval())
    if teacher is None:
        result, kl, divergence = perplexity(logits, windows, progress), None, ""
    else:
        comparison = compare(torch_logits(teacher), logits, windows, progress)
        result, kl = comparison.target, comparison.kl
        divergence = f", KL from the teacher {kl:.5f}"
    say(f"perplexity, {what}: {result.perplexity:.4f} +/- {result.standard_error:.4f}{divergence}")
    return result, kl


def _teacher(config: TrainConfig, plan: TrainingPlan) -> Any:
    if config.teacher == "none":
        return None
    name = config.model if config.teacher == "self" else config.teacher
    teacher = hub.load_model(name, dtype=plan.dtype, trust_remote_code=config.trust_remote_code).to(
        plan.device
    )
    own = hub.load_config(config.model, trust_remote_code=config.trust_remote_code)
    sizes = (teacher.config.get_text_config().vocab_size, own.get_text_config().vocab_size)
    if sizes[0] != sizes[1]:
        raise UserError(
            f"--teacher {name} has a vocabulary of {sizes[0]} and the model one of {sizes[1]}; "
            "distillation needs the same tokenizer"
        )
    return teacher.requires_grad_(False)


def _to_float32(model: Any) -> None:
    """Compute in float32 from here on: the reference is measured with the weights that ship."""
    for module in model.modules():
        for name, tensor in [*module.named_parameters(recurse=False), *_buffers(module)]:
            if name != "phi":  # decoded to float32 when used
                tensor.data = tensor.data.float()


def _buffers(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [(n, b) for n, b in module.named_buffers(recurse=False) if b.is_floating_point()]


def _describe_training(config: TrainConfig) -> dict[str, Any]:
    """All settings, the tokens seen, and the hash of a text that is a file."""
    data = Path(config.data)
    return config.to_json() | {
        "tokens": config.steps * config.tokens_per_step,
        "data_sha256": sha256_of(data) if data.is_file() else None,
    }


def _describe_reference(
    after: Perplexity, config: TrainConfig, evaluation: EvaluationText
) -> dict[str, Any]:
    return after.to_json() | {
        "context": config.context,
        "rule": RULE,
        "data": evaluation.name,
        "data_sha256": evaluation.sha256,
    }


def _describe_base(config: TrainConfig, model: Any) -> dict[str, Any]:
    stored = hub.load_config(config.model, trust_remote_code=config.trust_remote_code).dtype
    return {
        "name": Path(config.model).name if Path(config.model).is_dir() else config.model,
        "revision": getattr(model.config, "_commit_hash", None),
        "dtype": str(stored or torch.float32).removeprefix("torch."),
    }
