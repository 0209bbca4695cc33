"""The commands behind every claim of speed and memory: ``python -m benchmarks``, from the repository's root.

===============  ======================================================================================
`evaluation`     one evaluation of loss and gradient: time, memory, share of the machine's peak
`bank`           the same of the filter bank, beside VGG-19's
`quality`        how near paintings come to a style, judged by VGG-19; a command of its own, too
`scaling`        the cost of a pixel, by the size of the picture
`convergence`    the loss after a number of evaluations, and what the scale of the loss does to it
`startup`        from the command to the first evaluation
`solver_cost`    what the solver takes beside the evaluations (`solvers` has the measurement)
`stylizer`       a painting by Impasto, in a process of its own
`plain_torch`    the same painting by plain PyTorch, in a process of its own
`task`           what those two are asked and answer, and how they are run
`pictures`       what is painted
`machine`        where: the processor, its measured peak, versions
`report`         sections, tables and bounds, and how they become Markdown
`gpu`            ``make gpu-check``: kernels, engines and plans on a GPU host; a command of its own
===============  ======================================================================================
"""
