"""Fake-quantized activations and key-value caches."""
