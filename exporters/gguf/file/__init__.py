"""The GGUF container: header, metadata, files in several parts."""
