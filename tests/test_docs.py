"""What the documents say is true: their code runs, their links lead somewhere, their commands exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from impasto.runtime.write_image import write_image

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("demo/*.md")])
COMMANDS = sorted(
    {
        (path.name, line.split("#")[0].strip())
        for path in DOCUMENTS
        for line in re.findall(r"^impasto [a-z].*$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
)

# What a block takes for granted: the session that the text is about, and a reader's own module.
PROLOGUES = {
    "embedding.md": "",
    "jobs.md": "",
    "batch.md": "",
    "seeing.md": "",
    "export.md": """
import torch
layers = [torch.nn.Conv2d(3, 4, 3, padding=1)]
layers += [part for _ in range(4) for part in (torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3, padding=1))]
module = torch.nn.Module()
module.features = torch.nn.Sequential(*layers)
module.forward = module.features.forward
module.eval()
from impasto.export.autodiff.tape import Cotangents, Node, rule
""",
}


def blocks(path, language):
    return re.findall(rf"^```{language}\n(.*?)^```$", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.RandomState(0)
    for name in ("photo.jpg", "painting.jpg"):
        write_image(tmp_path / name, rng.random_sample((48, 64, 3)))
    return tmp_path


def run(command, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "IMPASTO_CACHE": str(folder / "cache")}
    environment["IMPASTO_CONFIG"] = str(folder / "settings")
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(PROLOGUES))
def test_python_blocks_run_in_order(name, folder):
    found = blocks(ROOT / "docs" / name, "python")
    assert found
    run([sys.executable, "-c", "\n".join([PROLOGUES[name], *found])], folder)


def test_the_exporting_commands_run_as_printed(folder):
    (commands,) = (block for block in blocks(ROOT / "docs" / "export.md", "") if block.startswith("impasto export"))
    for line in commands.splitlines():
        printed = run([sys.executable, "-m", *line.split()], folder)
    assert "slice gradient relu5_1" in printed
    assert "FAILED" not in printed


@pytest.mark.parametrize(("document", "line"), COMMANDS)
def test_every_command_and_option_exists(document, line):
    words = line.split()[1:]
    # Groups of commands have the command's name as a second word.
    depth = 2 if words[0] in ("presets", "weights", "cache", "engines") else 1
    shown = subprocess.run(
        [sys.executable, "-m", "impasto", *words[:depth], "--help"],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert shown.returncode == 0, f"{document}: {line}"
    for option in (word for word in words if word.startswith("-")):
        assert option in shown.stdout, f"{document}: {line}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target
