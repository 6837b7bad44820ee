r"""The pre-tokenizers of llama.cpp: their names, and the steps of tokenizer.json that do the same.

A row is here only if llama.cpp cuts text as those steps do; the tests hold every row against
llama.cpp on merges that run across every possible cut. Where the two differ on some text, the row
says on which.

Source: src/llama-vocab.cpp of b11549, `llama_vocab::impl::load` (names, and which of them take
whole words from the vocabulary without merging) and `llm_tokenizer_bpe` (regular expressions, with
the originals of the families in its comments).
"""

from dataclasses import dataclass
from typing import Any

Step = tuple[Any, ...]

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*" + _SPACES
_REST_SLASH = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _SPACES
_WORDS = _CONTRACTIONS + "|" + _BEFORE + r"\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAPITALISED, _CAPITALS = f"{_BEFORE}{_UPPER}*{_LOWER}+", f"{_BEFORE}{_UPPER}+{_LOWER}*"

LLAMA3 = _WORDS + r"|\p{N}{1,3}" + _REST
QWEN2 = _WORDS + r"|\p{N}" + _REST
QWEN35 = (
    f"{_CONTRACTIONS}|{_BEFORE}" + r"[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _SPACES
)
TEKKEN = f"{_CAPITALISED}|{_CAPITALS}" + r"|\p{N}" + _REST_SLASH
GPT4O = f"{_CAPITALISED}{_CONTRACTIONS}?|{_CAPITALS}{_CONTRACTIONS}?" + r"|\p{N}{1,3}" + _REST_SLASH
BAILING = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s+"
)
SEED_CODER = _WORDS + r"|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+" + _SPACES
EXAONE_MOE = (
    f"{_CONTRACTIONS}|{_BEFORE}"
    r"(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
)
JAIS2 = (
    _WORDS + r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s{512}(?!\S)|\s{256}(?!\S)|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)"
    r"|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}"
)
MINICPM5 = _WORDS + r"|\p{N}+" + _REST
BLOOM = " ?[^(\\s|[.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c])]+"
DEEPSEEK3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"""
    r"|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*" + _SPACES
)
_KANA_HAN = "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"
_DEEPSEEK_HAN = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"
_DEEPSEEK_MARKS = "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+"
_DEEPSEEK_LETTERS = (
    "\\s?[A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293"
    "\u0295-\u02af\u0370-\u0373\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c"
    "\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f\u0531-\u0556\u10a0-\u10c5\u13a0-"
    "\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77\u1d79-\u1d9a"
    "\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    "\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3"
    "\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115"
    "\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-"
    "\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-"
    "\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06"
    "\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    "\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df"
    "\U0001e900-\U0001e943]+"
)
# These match some part of every text, so what is between matches is nothing, and it makes no
# difference whether a Split keeps or removes it.
COVERING = frozenset({LLAMA3, QWEN2, QWEN35, TEKKEN, GPT4O, BAILING, SEED_CODER, EXAONE_MOE})

_BYTES, _GPT2 = ("bytes", False), ("bytes", True)
_DIGIT, _DIGITS = ("digits", True), ("digits", False)

_ASCII_CASE = (
    "llama.cpp's {name} takes letters beyond A-Z for both cases, and combining marks for no "
    "letters: a word that mixes cases beyond A-Z, or holds such marks, may be cut otherwise than "
    "by Hugging Face; other text is cut alike"
)


@dataclass(frozen=True)
class Row:
    """One behaviour.

    Attributes:
        name: what we write.
        ignore_merges: whether whole words are taken from the vocabulary without merging.
        steps: of tokenizer.json, in canonical form.
        aliases: llama.cpp's other names of the same behaviour.
        note: on which texts llama.cpp differs from tokenizer.json (empty: on none known).
    """

    name: str
    ignore_merges: bool
    steps: tuple[Step, ...]
    aliases: tuple[str, ...] = ()
    note: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """All names of the behaviour."""
        return (self.name, *self.aliases)


def _split(*regexes: str) -> tuple[Step, ...]:
    return (*(("split", regex) for regex in regexes), _BYTES)


ROWS = (
    Row("gpt-2", False, (_GPT2,), (
        "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "exaone4", "gigachat",
        "a.x-4.0", "mellum", "modern-bert", "jina-es", "jina-de")),
    Row("smollm", False, (_DIGIT, _GPT2), (
        "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2")),
    Row("llama-bpe", True, _split(LLAMA3), (
        "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
        "jina-v5-nano", "glm4", "glm5")),
    Row("smaug-bpe", False, _split(LLAMA3), ("dbrx", "chatglm-bpe")),
    Row("qwen2", False, _split(QWEN2), (
        "deepseek-r1-qwen", "kormo", "f2llmv2", "stablelm2", "megrez", "hunyuan", "solar-open",
        "grok-2")),
    Row("qwen35", False, _split(QWEN35)),
    Row("tekken", True, _split(TEKKEN), (), _ASCII_CASE.format(name="tekken")),
    Row("gpt-4o", False, _split(GPT4O), ("llama4", "kanana2", "talkie", "minimax-m2"),
        _ASCII_CASE.format(name="gpt-4o")),
    Row("deepseek-llm", False, (
        *_split(r"[\r\n]", _DEEPSEEK_LETTERS, _DEEPSEEK_MARKS, r"\s+$", _DEEPSEEK_HAN)[:-1],
        _DIGITS, _BYTES), (),
        "llama.cpp takes Unicode's wide spaces for no part of a run of Chinese or Korean text: "
        "next to them it may cut otherwise than Hugging Face"),
    Row("deepseek-coder", False, (
        *_split(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _DEEPSEEK_HAN)[:-1], _DIGIT, _BYTES), (),
        "llama.cpp takes Unicode's wide spaces for no part of a run of Chinese or Korean text: "
        "next to them it may cut otherwise than Hugging Face"),
    Row("deepseek-v3", False, _split(r"\p{N}{1,3}", _KANA_HAN, DEEPSEEK3), (
        "hunyuan-dense", "joyai-llm", "hy_v4")),
    Row("falcon", False, (
        ("punctuation", "Contiguous"), _GPT2, ("split", "[0-9][0-9][0-9]")), (),
        "Hugging Face's table of punctuation is older than llama.cpp's: next to the few marks that "
        "Unicode added since (U+061D, U+09FD ...) the two cut otherwise"),
    Row("bloom", False, _split(BLOOM), ("poro-chat", "gpt3-finnish")),
    Row("viking", False, (("split", BLOOM), _DIGIT, _BYTES)),
    Row("seed-coder", False, _split(SEED_CODER)),
    Row("bailingmoe", False, _split(BAILING), ("bailingmoe2", "llada-moe")),
    Row("exaone-moe", False, _split(EXAONE_MOE)),
    Row("jais-2", False, _split(JAIS2)),
    Row("minicpm5", True, _split(r"\p{N}{1,3}", MINICPM5)),
    Row("superbpe", False, _split(r"\p{N}+", r"(?=(\d{3})+(?!\d))")),
)  # fmt: skip

# Names of byte-level pre-tokenizers that llama.cpp knows and no row is for: for --pre alone.
OTHER_NAMES = (
    "default", "afmoe", "chameleon", "cohere2moe", "granite-embed-multi-97m", "jina-v1-en",
    "jina-v2-code", "jina-v2-de", "jina-v2-es", "k2-horizon", "kimi-k2", "laguna", "roberta-bpe",
    "spark2_5", "tiny_aya", "ufakzeka", "youtu",
)  # fmt: skip
# Names that llama.cpp takes for other than byte-level tokenizers.
CHARACTER_NAMES = ("gemma4", "granite-embed-multi-311m", "mmbert", "sarvam-moe", "whitespace")

KNOWN_NAMES = frozenset({name for row in ROWS for name in row.names} | set(OTHER_NAMES))
