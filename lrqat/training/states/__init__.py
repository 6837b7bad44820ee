"""Resumable states of a run: written whole, checked, found again."""
