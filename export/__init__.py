"""From a backbone and an objective to ONNX.

- `graph`: a graph under construction; `forward`: a layer table becomes one; `user`: so do users' own networks
- `autodiff`: reverse mode from ONNX to ONNX, one rule an operator
- `objective`: what is descended; `terms`: its terms as nodes; `statistics`: what measures their targets
- `fused`: every loss and the pixel gradient in one graph; `slices`: cut at the taps, each with its gradient
- `bundle`: all of it in a folder, with a `manifest`; `folders`: replaced whole or not at all
"""
