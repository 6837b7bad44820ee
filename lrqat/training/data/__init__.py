"""Training text: read, packed into blocks, or written by the model itself."""
