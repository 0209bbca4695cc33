"""From a backbone and an objective to ONNX: forward graphs, autodiff, slices, fused objectives, artifacts."""
