"""How one evaluation is laid out: `fused`, one graph, or `sliced`, graphs between which kernels run."""
