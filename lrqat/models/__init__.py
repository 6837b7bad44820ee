"""Models of transformers: loaded, put on their grids, fused, and had back as a reference."""
