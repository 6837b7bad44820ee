"""A small Llama of one's own: tokenizer, configuration, training from scratch.

For machines without a model at hand: the demonstration and the tests make theirs here, from any
text, with the libraries that real ones are made with.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from lrqat.progress import tqdm

END_OF_TEXT = "<|endoftext|>"


def make_tokenizer(texts: Iterable[str], *, vocabulary: int) -> Any:
    """Train a byte-level BPE tokenizer with GPT-2's pre-tokenizer on `texts`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT
    )


def make_untrained_model(
    vocabulary: int,
    *,
    hidden: int,
    intermediate: int,
    layers: int,
    heads: int,
    kv_heads: int,
    seed: int,
    context: int = 1024,
    tied: bool = False,
) -> Any:
    """A Llama with random weights (float32), the same for the same seed."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        tie_word_embeddings=tied,
        bos_token_id=0,
        eos_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


class _Shown(TrainerCallback):
    """Moves a bar."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """After each step."""
        self._bar.update(1)


def train_base_model(
    model: Any, blocks: Any, *, steps: int, batch_size: int, learning_rate: float, folder: Path
) -> None:
    """Train `model` from scratch, in place, with a plain Trainer.

    Args:
        model: from `make_untrained_model`.
        blocks: a `lrqat.training.data.blocks.TokenBlocks`.
        steps: optimiser steps.
        batch_size: blocks a step.
        learning_rate: peak; 5 % warm-up, cosine decay.
        folder: the Trainer's own; nothing is saved in it.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, steps // 20),
        adam_beta2=0.95,
        weight_decay=0.1,
        seed=0,
        disable_tqdm=True,  # it has a bar of ours
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )

    def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        ids = torch.stack([row["input_ids"] for row in rows])
        return {"input_ids": ids, "labels": ids}

    model.train()
    trainer = Trainer(model=model, args=arguments, train_dataset=blocks, data_collator=collate)
    trainer.remove_callback(PrinterCallback)
    with tqdm(desc="the base model", unit="step", total=steps) as bar:
        trainer.add_callback(_Shown(bar))
        trainer.train()
    model.eval()
