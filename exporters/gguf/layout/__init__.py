"""What ggml's block types have in common: fields, rows of bytes, exactness."""
