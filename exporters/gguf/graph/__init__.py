"""What llama.cpp's graphs are told and cannot compute: hyperparameters, rotary embeddings."""
