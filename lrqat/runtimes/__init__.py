"""Exported files in the real runtimes, and the proof that they compute what was trained."""
