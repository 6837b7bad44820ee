"""Passes over the traced graph, one a file.

A pass is `f(model, ...) -> bool`: it changes the model in place, and returns whether it changed
anything. What it needs besides the model (a plan, names of weights) follows.
"""
