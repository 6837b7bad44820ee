"""Regular expressions from recipes of others: which may be searched in the names of modules.

Python's `re` tries every way in which a pattern could match, and a pattern of twenty characters has
more ways than a machine can try in a year (`(a|a)+b`). Nothing of that is needed to name layers.
"""

import re

# What one pattern, and all of a recipe, may have to try: far more than lists of layers need.
MOST_WAYS = 10**6
_LONGEST = 1000
_REPEATS = 64  # how often an endless repetition may take another character of a module's name
_UNCOUNTED = 10**12  # more than that is not told apart
_TOKEN = re.compile(
    r"(?P<literal>\\.|\[\^?\]?[^\]]*\])|(?P<look>\(\?)|(?P<open>\()|(?P<close>\))|(?P<or>\|)"
    r"|(?P<repeat>[*+?]|\{[0-9, ]*\})|(?P<other>.)",
    re.DOTALL,
)


def ways(text: str) -> int:
    """How many ways to match a pattern there are at most, from one place of a name.

    The alternatives of every group are multiplied, and so is each repetition.

    Raises:
        ValueError: it is no regular expression, has more than 1,000 characters, repeats a group,
            looks around, or refers back.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"it has {len(text):,} characters, and {_LONGEST:,} are the most")
    count, alternatives = 1, 1
    before = None
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "look":
            raise ValueError("it has a group that begins with (?, which recipes do not need")
        if kind == "literal" and re.fullmatch(r"\\[1-9]", token.group()):
            raise ValueError(f"it refers back to a group ({token.group()})")
        if kind == "repeat" and before == "close":
            raise ValueError("it repeats a group, which can take for ever; list what is meant")
        if kind == "repeat":
            count *= 2 if token.group() == "?" else _REPEATS
        alternatives += kind == "or"
        if kind in ("open", "close"):
            count, alternatives = count * alternatives, 1
        before, count = kind, min(count, _UNCOUNTED)
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"it is no regular expression ({error})") from None
    return min(count * alternatives, _UNCOUNTED)
