"""Texts of tokens that llama.cpp knows by heart, whatever type the file gives them.

A file names bos, eos and the like by id, but llama.cpp also looks for well-known texts: it stops
generating at some, and makes control tokens of all below.

Source: src/llama-vocab.cpp of b11549, `llama_vocab::impl::load`, "auto-detect special tokens".
"""

# End of turn, unless the file says which token that is.
ENDS_OF_TURN = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|end_of_text|>",
    "<EOT>", "_<EOT>", "[EOT]", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<end_of_utterance>",
})  # fmt: skip
# All at which llama.cpp stops generating by itself.
ENDS = ENDS_OF_TURN | {
    "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "</s>", "<|eom_id|>", "[EOS]", "<eos>",
    "<turn|>", "<|tool_response>", "[e~[", "<|ifm|im_end|>",
}  # fmt: skip
FILL_IN_THE_MIDDLE = frozenset({
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>",
    "\u2581<PRE>", "<|code_prefix|>", "<|prefix|>", "<|plamo:fim_prefix|>",
    "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>",
    "\u2581<SUF>", "<|code_suffix|>", "<|suffix|>", "<|plamo:fim_suffix|>",
    "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>", "<MID>",
    "\u2581<MID>", "<|code_middle|>", "<|middle|>", "<|plamo:fim_middle|>",
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>",
    "<|file_sep|>", "<|plamo:file_separator|>",
})  # fmt: skip
FORCED_CONTROL = ENDS | FILL_IN_THE_MIDDLE
