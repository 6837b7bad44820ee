"""Files of JSON that other commands of ours write, as parts of a report."""

from lrqat.evaluation.token_divergence import TokenDivergence
from lrqat.reporting.fields import Fields
from lrqat.reporting.material import Frontier, Proof, Size, TokenKL


def read_tokens(said: Fields, path: str) -> TokenKL:
    """What `lrqat evaluate --base --tokens` wrote. Raises ForeignFileError."""
    tokens = tuple(_token(token) for token in said.parts("per_token"))
    return TokenKL(
        path=said.text("file") or path,
        base=said.text("base"),
        runtime=said.text("runtime"),
        bytes=said.count("bytes"),
        context=said.count("context"),
        perplexity=said.number("perplexity"),
        base_perplexity=said.number("base_perplexity"),
        kl=said.number("kl"),
        quantiles=said.part("kl_quantiles").numbers(),
        same_top=said.number("same_top"),
        groups={
            heading: {name: (row.number("kl"), row.count("tokens")) for name, row in rows.named()}
            for heading, rows in said.part("groups").named()
        },
        leading=said.texts("leading"),
        tokens=tokens,
    )


def _token(said: Fields) -> TokenDivergence:
    return TokenDivergence(
        window=said.count("window"),
        position=said.count("position"),
        token=said.text("token"),
        kl=said.number("kl"),
        base_nll=said.number("base_nll"),
        nll=said.number("nll"),
        base_says=said.guesses("base_says"),
        says=said.guesses("says"),
    )


def read_proofs(said: Fields, path: str) -> list[Proof]:
    """What `lrqat parity --json` printed. Raises ForeignFileError."""
    return [_proof(file) for file in said.parts("files")]


def _proof(said: Fields) -> Proof:
    bytes_, graph, runtime = (said.part(level) for level in ("l0", "l1", "l2"))
    return Proof(
        path=said.text("file"),
        runtime=said.text("runtime"),
        bytes=said.count("bytes"),
        verdicts=said.flags("verdicts"),
        tensors=bytes_.count("tensors"),
        mismatches=bytes_.count("mismatches"),
        logit_difference=graph.maybe("max_logit_difference"),
        perplexity=runtime.number("perplexity"),
        reference_perplexity=runtime.number("reference_perplexity"),
        kl=runtime.number("kl"),
        same_top=runtime.number("same_top"),
        failures=said.texts("failures"),
    )


def read_frontier(said: Fields, path: str) -> Frontier:
    """What `lrqat plan --frontier --json` printed. Raises ForeignFileError."""
    points = [_size("allotted", point) for point in said.parts("frontier")]
    recipes = [_size(name, size) for name, size in said.part("recipes").named()]
    points.sort(key=lambda size: size.bytes)
    recipes.sort(key=lambda size: size.bytes)
    return Frontier(path, tuple(points), tuple(recipes))


def _size(name: str, said: Fields) -> Size:
    return Size(name, said.count("bytes"), said.number("estimate"), said.maybe("kl"))
