"""Trained models as ONNX files: graphs that trace, the file with its description, and the check against torch."""
