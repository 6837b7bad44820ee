"""Strings on which tokenizers disagree if they can: every script, and what people find by hand."""

import random
import unicodedata

POOLS = (
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ",
    "0123456789",
    " \t\n",
    " \n\r",
    ".,;:!?'\"()[]{}<>=+-*/\\|&^%$#@~`_",
    "éüñßøÉÜŁžçàАяБжΩλ",
    "漢字仮名カナ한국어العربيةहिन्दी",
    "🚀😀🦙👩‍💻✅½²³",
    "e\u0301\u200b\u00a0\u3000\ufeff",
)
FIXED = (
    "",
    "a",
    " ",
    "   ",
    "\n",
    "\n\n\n",
    "\r\n\r\n \r\n",
    "\t\t\n \t",
    "  two  spaces\tand\ttabs\n\n\nlines \r\n",
    " \n  \n   x",
    "trailing   ",
    " leading",
    " " * 40 + "indented" + " " * 17,
    "I've they'RE we'll 'quoted' can't I'M o'clock 'S 's'S",
    "don\u2019t l\u2019eau \u2018x\u2019 \u201cy\u201d",
    "1 12 123 1234 12345 1234567890 3.14159 1,000,000 0x1F 1e-9",
    "\u0661\u0662\u0663 \u0967\u0968\u0969 \u2460\u2461 \u2167 x\u00b2 \u00bd",
    "def f(x: int) -> str:\n    return f'{x!r}'  # comment\n\n\nclass A(B):\n\tpass\n",
    "for(int i=0;i<n;++i){a[i]+=b[i]*c;}//done\n/* x */ http://a.b/c?d=e&f=g#h",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case XMLHttpRequest iOS",
    "x" * 300,
    "ab" * 200,
    "=" * 70 + "\n" + "-" * 33,
    "supercalifragilisticexpialidocious" * 4,
    "\U0001f468\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466 \U0001f44d\U0001f3fd"
    "\U0001f1e9\U0001f1ea \u2764\ufe0f \U0001f3f4\u200d\u2620\ufe0f",
    "e\u0301 = \u00e9? \u1e9b\u0323 \ufb01 \uff21\uff22 \u212b \u2126 \u1100\u1161\u11a8 \uac01",
    "\x01\x02\x07\x08\x0b\x0c\x1b[0m\x7f\x80\x85\x9f",
    "\u2028\u2029\u00a0\u2003\u3000\u200b\u200e\ufeff\u2060",
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u0928\u092e\u0938\u094d\u0924\u0947 "
    "\u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 \u4f60\u597d\uff0c\u4e16\u754c\u3002 "
    "\u3053\u3093\u306b\u3061\u306f \uc548\ub155\ud558\uc138\uc694",
    "\U00020000\U00010400\U0001d538\U0001f600\U000e0041\ue000",
    "<|endoftext|> and <s> and </s> and <0x41> and <unk> are text",
)
_STARTS = (*range(0x21, 0x800, 40), *range(0x800, 0x3400, 120), *range(0xA000, 0xAC00, 90),
           0x4E00, 0x9000, 0xAC00, 0xD000, *range(0xF900, 0x10000, 150),
           *range(0x10000, 0x12000, 256), 0x1D400, *range(0x1F300, 0x1FB00, 128))  # fmt: skip


def scripts():
    """One string for every neighbourhood of Unicode: characters alone, in words, with digits."""
    for start in _STARTS:
        found = [chr(i) for i in range(start, start + 24) if unicodedata.category(chr(i))[0] != "C"]
        if found:
            yield f"{''.join(found)} {' '.join(found[::3])}1{found[0]}2\n{found[-1]}A a{found[0]}b"


def strings(mixed=200):
    """Everything: hand-picked ones, every script, and `mixed` random mixtures."""
    rng = random.Random(5)
    made = [*FIXED, *scripts()]
    for _ in range(mixed):
        pools = rng.choices(POOLS, weights=(8, 3, 4, 1, 4, 2, 2, 1, 1), k=rng.randint(1, 30))
        made.append("".join(rng.choice(pool) for pool in pools for _ in range(rng.randint(1, 4))))
    return made
