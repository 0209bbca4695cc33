"""Small pictures and weights, a cache of the tests' own, and two ways to run a command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import impasto
from impasto.cli import main
from impasto.models.random_weights import random_weights
from impasto.models.weights import save_weights

# Both where the package is installed and where it is the checkout.
_ROOT = Path(impasto.__file__).parents[1]


@dataclass
class Run:
    code: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The one line of the error: the last on standard error."""
        lines = [line for line in self.err.splitlines() if line.startswith("impasto: error: ")]
        assert len(lines) == 1, self.err
        assert self.err.splitlines()[-1] == lines[0]
        assert "Traceback" not in self.err
        return lines[0].removeprefix("impasto: error: ")


@dataclass
class Pictures:
    """Files that commands can be given; ``job`` is a stylize that ends within a second.

    The preset is a published one, so that nothing here depends on how our default is tuned.
    """

    folder: Path
    content: Path
    style: Path
    weights: Path

    @property
    def job(self) -> list[str]:
        recipe = ["--preset", "pytorch", "--solver", "lbfgs", "--size", "24", "--iterations", "3"]
        return ["stylize", str(self.content), str(self.style), *recipe, "--weights", str(self.weights)]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


@pytest.fixture(scope="session")
def pictures(shared: Path) -> Pictures:
    generator = np.random.default_rng(20)
    for name, size in (("content.png", (40, 56)), ("style.jpg", (50, 45))):
        blocks = generator.integers(0, 256, (size[0] // 5, size[1] // 5, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize(size[::-1], Image.Resampling.BICUBIC).save(shared / name)
    weights = shared / "small.safetensors"
    save_weights(random_weights("vgg19", 7, last_conv="conv3_1"), weights)
    return Pictures(shared, shared / "content.png", shared / "style.jpg", weights)


@pytest.fixture(autouse=True)
def cache(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, warm from test to test; wide help, so that no option's name is broken in two."""
    monkeypatch.setenv("IMPASTO_CACHE", str(shared / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.delenv("IMPASTO_DEBUG", raising=False)
    return shared / "cache"


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of this test alone, not made yet."""
    monkeypatch.setenv("IMPASTO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """Run a command line in this process."""

    def run(*args: object) -> Run:
        capsys.readouterr()
        code = main([str(arg) for arg in args])
        captured = capsys.readouterr()
        return Run(code, captured.out, captured.err)

    return run


# Shells start jobs in the background with SIGINT ignored, and so may be this whole test run.
_SCRIPT = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from impasto.cli import main\n{}\nsys.exit(main(sys.argv[1:]))"
)


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Start a command line as a process of its own; ``before`` is Python to run first."""

    def start(*args: object, before: str = "", stdout: int = subprocess.PIPE, stderr: int = subprocess.PIPE):
        return subprocess.Popen(
            [sys.executable, "-c", _SCRIPT.format(before), *map(str, args)],
            env=os.environ | {"PYTHONPATH": str(_ROOT)},
            stdout=stdout,
            stderr=stderr,
            text=True,
        )

    return start
