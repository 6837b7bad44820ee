"""Passes over the traced graph, one a file."""
