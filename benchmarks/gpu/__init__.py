"""``make gpu-check``: proves kernels, engines and plans on a GPU host, and measures them: ``python -m benchmarks.gpu``.

===============  ======================================================================================
`host`           versions, what the GPU is, and the peaks that it reaches
`kernels`        every kernel against float64, its time, and what it takes of a multiprocessor
`engines`        engines built, loaded again from the cache, listed and verified
`parity`         losses and gradients of every backend, plan and precision against float64
`loop`           the time of an evaluation, solver included, beside PyTorch's
`paint`          small paintings: the same bits twice, and a loss as low as the CPU's
`sanitizer`      the kernels' checks under compute-sanitizer
===============  ======================================================================================

Each part runs in a process of its own (`worker`), so that a GPU that one of them leaves broken serves the next. What
is missing makes a part, or one thing in it, be skipped with its reason; `findings` has what a part reports, `document`
how that becomes a report. `check_*` are the kernels' checks, `timing` and `peaks` how things are measured.
"""
