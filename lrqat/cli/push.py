"""Publish a checkpoint, and GGUF files and ONNX folders made from it, on the Hugging Face hub.

Shows what would be sent, and the model card; --yes sends it, in one commit. The checkpoint's hashes
are compared first, and every weight of every export with the checkpoint. Only files that belong to
them are sent, never states of the run.

The token is huggingface_hub's: HF_TOKEN, or what `hf auth login` has stored.
"""

import argparse
from collections.abc import Sequence

from lrqat.cli import command


def build_parser() -> argparse.ArgumentParser:
    parser = command.parser(__doc__ or "")
    parser.add_argument("paths", nargs="+", metavar="PATH", help="checkpoint, .gguf, ONNX folder")
    parser.add_argument("--repo", required=True, metavar="OWNER/NAME", help="on the hub")
    parser.add_argument("--yes", action="store_true", help="send; without it, only show")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch; default: main")
    parser.add_argument(
        "--license", metavar="ID", help="the hub's identifier; default: that of the source"
    )
    parser.add_argument(
        "--checkpoint", metavar="FOLDER", help="of exported files that do not lie in its folder"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    out = command.Output(args.json)
    from lrqat.publication.plan import plan_publication

    publication = plan_publication(
        args.paths, args.repo, checkpoint=args.checkpoint, license_=args.license, say=out.say
    )
    sizes = publication.sizes
    rows = [(name, f"{size:,}") for name, size in sizes.items()]
    out.table(f"{args.repo}, {args.revision or 'main'}", ("file", "bytes"), rows)
    out.say(f"{len(sizes)} files, {sum(sizes.values()):,} bytes; licence {publication.license}")
    result = {"repository": args.repo, "files": sizes, "card": publication.card, "commit": None}
    if not args.yes:
        out.say(f"README.md:\n\n{publication.card}")
        out.say("nothing was sent; add --yes to publish this")
        out.result(result)
        return command.OK
    from lrqat.publication.hub import publish

    address = publish(publication, private=args.private, revision=args.revision)
    out.say(f"published: {address}")
    out.result(result | {"commit": address})
    return command.OK
