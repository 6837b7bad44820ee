"""llama.cpp through its C API, and what it rounds."""
