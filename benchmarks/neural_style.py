"""The package ``neural-style`` (ProGamerGov's port of jcjohnson/neural-style), run as its command would be.

Its `main` paints with its defaults, which are `johnson`'s but for the total variation (absolute differences) and the
solver (``LBFGS`` without a line search), from its own noise. Three things are put under it: our weights in the file
that it reads; a closure around its own that counts and times; and where there is no torchvision, as beside CPU builds
of torch, stand-ins for the few functions by which it reads and writes pictures.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image

from benchmarks.closure import Closure
from benchmarks.pictures import square
from benchmarks.task import Run, Task, answer, peak_bytes
from impasto.models.locate import find_weights
from impasto.models.weights import Weights
from impasto.optimize.cpus import available_cpus
from impasto.runtime.write_image import write_image

PACKAGE = "neural-style"


def paint(task: Task) -> Run:
    """Paint the task's pictures by the package's own recipe."""
    found: list[Run] = []
    with tempfile.TemporaryDirectory() as folder:
        content, style, model = (Path(folder) / name for name in ("content.png", "style.png", "vgg19.pth"))
        write_image(content, square(task.content, task.size))
        write_image(style, square(task.style, task.size))
        torch.save(_state(find_weights(task.weights)), model)
        options = {
            "content_image": content,
            "style_image": style,
            "model_file": model,
            "image_size": task.size,
            "num_iterations": task.evaluations,
            "output_image": Path(folder) / "out.png",
            "gpu": "c",
            "print_iter": 0,
            "save_iter": 0,
            "seed": 0,
        }
        # It parses its command line when it is imported.
        words = [word for name, value in options.items() for word in (f"-{name}", str(value))]
        with patch.object(sys, "argv", ["neural-style", *words, "-disable_check"]), _torchvision():
            program = import_module("neural_style.neural_style")
            imports = peak_bytes()
            counted = _counted(task, imports, found)
            with patch.object(program, "optim", SimpleNamespace(LBFGS=counted)):
                program.main()
    return found[0]


def _counted(task: Task, imports: int, found: list[Run]) -> type[torch.optim.LBFGS]:
    """Return a solver whose one step ends after the task's evaluations, and puts what it took into ``found``."""

    class Counted(torch.optim.LBFGS):
        def step(self, closure: Callable[[], torch.Tensor]) -> Any:  # type: ignore[override]
            if found:  # its loop goes on until it has counted two evaluations
                return closure()
            x = self.param_groups[0]["params"][0]
            found.append(Closure(task, x, closure).run(super().step, imports))
            return None

    return Counted


def _state(weights: Weights) -> dict[str, torch.Tensor]:
    """Return the convolutions as a state dict of its VGG-19, whose convolutions and ReLUs take turns."""
    state, index = {}, 0
    block = 1
    for conv in weights.backbone.convs:
        if conv.name[4] != str(block):  # a pool lies between blocks
            block, index = block + 1, index + 1
        for part in ("weight", "bias"):
            if f"{conv.name}.{part}" in weights.tensors:
                state[f"features.{index}.{part}"] = torch.from_numpy(weights.tensors[f"{conv.name}.{part}"])
        index += 2
    return state


@contextmanager
def _torchvision() -> Iterator[None]:
    """Let ``torchvision.transforms`` be imported where there is none."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    package, transforms = ModuleType("torchvision"), ModuleType("torchvision.transforms")
    package.transforms = transforms  # type: ignore[attr-defined]
    for name, value in _TRANSFORMS.items():
        setattr(transforms, name, value)
    with patch.dict(sys.modules, {"torchvision": package, "torchvision.transforms": transforms}):
        yield


def _compose(parts: list[Callable[[Any], Any]]) -> Callable[[Any], Any]:
    def all_parts(value: Any) -> Any:
        for part in parts:
            value = part(value)
        return value

    return all_parts


def _normalize(mean: list[float], std: list[float]) -> Callable[[torch.Tensor], torch.Tensor]:
    mean_of, std_of = (torch.tensor(values).reshape(3, 1, 1) for values in (mean, std))
    return lambda value: (value - mean_of) / std_of


def _to_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image, np.float32).transpose(2, 0, 1) / 255)


def _to_image(value: torch.Tensor) -> Image.Image:
    return Image.fromarray(value.mul(255).byte().numpy().transpose(1, 2, 0).copy())


_TRANSFORMS: dict[str, Any] = {
    "Compose": _compose,
    "Lambda": lambda function: function,
    "Normalize": _normalize,
    "Resize": lambda size: lambda image: image.resize(size[::-1], Image.Resampling.BILINEAR),
    "ToTensor": lambda: _to_tensor,
    "ToPILImage": lambda: _to_image,
}

if __name__ == "__main__":
    torch.set_num_threads(available_cpus())
    answer(paint)
