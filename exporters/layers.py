"""Layers of a model that share a line in the table of a plan."""

import re


def any_layer(name: str) -> str:
    """`name` with a star in the place of the number of its layer."""
    return re.sub(r"\.\d+\.", ".*.", name)
