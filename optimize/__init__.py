"""Engines: exported graphs made ready for one machine, shape and precision.

- `cache`: where engines are kept, each built once; `keys`: everything that one depends on
- `onnxruntime`: engines of ONNX Runtime; `cpus`: how many processors there really are for them
"""
