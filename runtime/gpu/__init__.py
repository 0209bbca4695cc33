"""What stays on the device: memory, compiled graphs, kernels' launches, the solvers and the loop."""
