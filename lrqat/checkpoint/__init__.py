"""The fused checkpoint on disk: manifest, integers, scales; read without torch."""
