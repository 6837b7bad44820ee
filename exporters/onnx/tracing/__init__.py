"""The model as torch.onnx.export traces it."""
