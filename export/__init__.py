"""Quantized model in; ONNX, engines, runtime sessions and their comparison out."""
