"""Backends: ONNX Runtime and the torch reference, behind one protocol, and how one is chosen."""
