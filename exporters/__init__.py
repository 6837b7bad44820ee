"""Exporters: a fused checkpoint becomes what a runtime reads, bit for bit or not at all.

`exporters.format` says what a format is, and has the one registry of them; each is a package here,
imported when it is used.
"""
