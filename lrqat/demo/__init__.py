"""What `lrqat demo` shows: a base model, its text, llama.cpp's own rounding, and what each says."""
