"""How the checkpoint's tensors lie in an ONNX file."""
