"""Grids allotted under a budget of bytes, so that the model's KL is least."""
