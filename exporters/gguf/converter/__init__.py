"""Models that llama.cpp's own converter lays out."""
