"""Write a model of random weights in the shape of a real one, to measure memory and time with.

One shard is in memory at a time. There is no tokenizer: a benchmark takes random tokens.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrqat.cli import command

# Fields of transformers' LlamaConfig. Source: config.json of the models of these names.
SHAPES: dict[str, dict[str, Any]] = {
    "llama-2-7b": {
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    },
    "llama-2-13b": {
        "vocab_size": 32000, "hidden_size": 5120, "intermediate_size": 13824,
        "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 40,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
    },
    "llama-3.2-1b": {
        "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
        "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8,
        "head_dim": 64, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    },
}  # fmt: skip


def build_parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__ or "")
    parser.add_argument("--like", choices=SHAPES, default="llama-2-7b", help="whose shape")
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--layers", type=int, default=None, help="layers; default: the shape's")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="type")
    parser.add_argument("--seed", type=int, default=0, help="of the weights")
    parser.add_argument("--shard-mb", type=int, default=1024, help="largest file, in MiB")
    parser.add_argument("--overwrite", action="store_true", help="replace what is in --output")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    for name in ("layers", "shard_mb"):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f"--{name.replace('_', '-')} {value} must be at least 1")
    import torch
    from transformers import LlamaConfig

    from benchmarks.random_checkpoint import write_random_model
    from lrqat.progress import tqdm

    layers = {} if args.layers is None else {"num_hidden_layers": args.layers}
    out = command.Output(args.json)
    count = write_random_model(
        LlamaConfig(**{**SHAPES[args.like], **layers}),
        Path(args.output),
        dtype=getattr(torch, args.dtype),
        shard_bytes=args.shard_mb << 20,
        seed=args.seed,
        overwrite=args.overwrite,
        progress=lambda shards: tqdm(shards, desc="writing", unit="file"),
    )
    out.say(f"{count:,} random weights in the shape of {args.like} in {args.output}")
    out.result({"weights": count, "output": args.output})
    return command.OK
