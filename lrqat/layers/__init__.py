"""Weights on a grid as modules of torch, and their gradients."""
