"""Images in, quantized torch model out."""
