"""A training run from its settings to the fused checkpoint."""
