"""Recipes: which weight of a model goes on which grid, by the names of its modules."""
