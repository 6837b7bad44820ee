"""Runs exported files in the real runtimes and compares them with the PyTorch reference."""
