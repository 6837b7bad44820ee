"""Small tokenizers of both kinds, trained on the spot."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers import normalizers as norms
from tokenizers import processors as post

SIZE = 512

PIECES = {
    "bytes": lambda use_regex: pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=use_regex
    ),
    "digits": lambda individual: pre_tokenizers.Digits(individual_digits=individual),
    "punctuation": lambda behavior: pre_tokenizers.Punctuation(behavior.lower()),
    "split": lambda regex: pre_tokenizers.Split(Regex(regex), "isolated"),
}


def pre_tokenizer(steps):
    parts = [PIECES[kind](*arguments) for kind, *arguments in steps]
    return parts[0] if len(parts) == 1 else pre_tokenizers.Sequence(parts)


def byte_level(text, steps, ignore_merges, size=SIZE):
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizer(steps)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text] if isinstance(text, str) else text, trainer)
    return tokenizer


def sentencepiece_like(text, folder, prefix_space=True, size=SIZE):
    """A sentencepiece BPE model, in `folder`, and the tokenizer.json that it stands for."""
    import sentencepiece

    source = folder / "text.txt"
    source.write_text(text, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(source),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=size,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix_space,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    vocab = {model.IdToPiece(i): i for i in range(size)}
    merges = [
        (model.GetScore(i), (piece[:cut], piece[cut:]))
        for piece, i in vocab.items()
        for cut in range(1, len(piece))
        if i > 258 and piece[:cut] in vocab and piece[cut:] in vocab
    ]
    ordered = [pair for _, pair in sorted(merges, key=lambda item: -item[0])]
    tokenizer = Tokenizer(
        models.BPE(vocab, ordered, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    steps = [norms.Prepend("\u2581")] if prefix_space else []
    tokenizer.normalizer = norms.Sequence([*steps, norms.Replace(" ", "\u2581")])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = post.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def unigram_like(text, folder, scheme="always", size=SIZE):
    """A sentencepiece Unigram model without byte fallback, as tokenizer.json."""
    import sentencepiece

    source = folder / "text.txt"
    source.write_text(text, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(source),
        model_prefix=str(folder / "unigram"),
        vocab_size=size,
        model_type="unigram",
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    model = sentencepiece.SentencePieceProcessor(model_file=str(folder / "unigram.model"))
    vocab = [(model.IdToPiece(i), model.GetScore(i)) for i in range(model.vocab_size())]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer
