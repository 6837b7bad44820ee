"""Files that a report is made of, as other commands write them, with values that tests choose."""

import json

HOSTILE = (
    "<script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=2">',
    "</script><script>window.hacked=3</script>",
    "$\\frac{$ {{ 7 * 7 }} {% x %}",
    "]]><!-- \u202e ' ` &lt;",
)


def token(text, kl, window=0, position=5, guesses=("a", "b", "c")):
    says = [[guess, share] for guess, share in zip(guesses, (0.5, 0.25, 0.125), strict=True)]
    return {"window": window, "position": position, "token": text, "kl": kl, "base_nll": 1.0,
            "nll": 1.5, "base_says": says, "says": says[::-1]}  # fmt: skip


def tokens_of(tokens, file="model.gguf", base="base", leading=("before",)):
    """What `lrqat evaluate --tokens` writes."""
    kls = [each["kl"] for each in tokens]
    return {
        "file": file, "base": base, "runtime": "llama.cpp", "bytes": 4_150_000, "context": 64,
        "perplexity": 24.375, "base_perplexity": 23.125, "kl": sum(kls) / len(kls),
        "kl_quantiles": {"50%": 0.1, "most": max(kls)}, "same_top": 0.75, "tokens": len(tokens),
        "groups": {"kind": {"inside a word": {"kl": 0.5, "tokens": len(tokens)}}},
        "leading": list(leading), "per_token": tokens,
    }  # fmt: skip


def parity_of(file="model.gguf", failures=()):
    """What `lrqat parity --json` prints."""
    l2 = {"perplexity": 21.5, "reference_perplexity": 21.25, "kl": 1e-4, "same_top": 0.99}
    proof = {
        "file": file, "runtime": "llama.cpp", "bytes": 4_150_000,
        "l0": {"tensors": 75, "mismatches": 0, "by_tensor": {}},
        "l1": {"max_logit_difference": 2e-5}, "l2": l2,
        "verdicts": {"L0": True, "L1": True, "L2": not failures},
        "failures": list(failures), "passed": not failures,
    }  # fmt: skip
    return {"files": [proof], "passed": not failures}


def frontier_of(recipe="Q4_0"):
    """What `lrqat plan --frontier --json` prints."""
    points = [{"bytes": n * 10**6, "estimate": 1 / n**2, "kl": None} for n in range(2, 8)]
    return {"frontier": points, "recipes": {recipe: {"bytes": 4_000_000, "estimate": 0.2}}}


def training_of(name="model.layers.0"):
    """What `lrqat train --json` prints."""
    score = {"perplexity": 19.75, "standard_error": 1.0, "tokens": 100}
    history = [
        {"step": n, "loss": 2.0 / n, "changed": 0.01 * n, "learning_rate": 1e-3, "skipped": 0,
         "rate_low_rank": 3e-3 / n, "rate_scale": 1e-4 / n}
        for n in (1, 2, 3)
    ]  # fmt: skip
    return {
        "method": "lr-qat", "perplexity": {"before": score, "after": score, "start": None},
        "kl": {"after": 0.125, "start": None}, "same_top_after": 0.875, "changed": 0.03,
        "seconds": 12.0, "skipped_steps": 0, "history": history, "sensitivity": {},
        "blocks": [{"name": name, "before": 0.5, "after": 0.25, "changed": 0.1, "weights": {}}],
        "weights": {}, "output": "run", "made_worse": False,
    }  # fmt: skip


def written(folder, **contents):
    """Each content as NAME.json in a folder; the paths."""
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return [str(folder / f"{name}.json") for name in contents]
