"""ONNX Runtime: sessions, what they round, and perplexity without torch."""
