"""The files of an ONNX folder, written, read and checked."""
