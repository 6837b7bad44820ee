"""Passes over the traced graph, one a file, each from an `ir.Model` to the same one changed."""
