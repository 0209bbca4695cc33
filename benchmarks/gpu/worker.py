"""One part in a process of its own: ``python -m benchmarks.gpu.worker PART FILE [--quick]`` writes the part as JSON."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.gpu import engines, host, kernels, loop, paint, parity, sanitizer
from benchmarks.gpu.findings import Part
from benchmarks.task import ROOT

PARTS: dict[str, Callable[[bool], Part]] = {
    "host": host.part,
    "kernels": kernels.part,
    "engines": engines.part,
    "parity": parity.part,
    "loop": loop.part,
    "paint": paint.part,
    "sanitizer": sanitizer.part,
}


def run(name: str, quick: bool) -> Part:
    """Run a part in a process of its own; one that crashes is a part that failed."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "part.json")
        command = [sys.executable, "-m", "benchmarks.gpu.worker", name, str(answer), *(["--quick"] if quick else [])]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        part = Part.from_json(json.loads(answer.read_text())) if answer.exists() else Part(name.capitalize())
    if code:
        part.failures.append(f"the process of part {name!r} ended with {code}: its messages are above")
    return part


def main() -> None:
    """Do what the command line asks."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=[*PARTS, "checks"])
    parser.add_argument("answer", type=Path)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    do = PARTS.get(options.part, kernels.checks)
    part = Part(options.part.capitalize())
    with part.attempt(options.part):
        part = do(options.quick)
    options.answer.write_text(json.dumps(part.to_json()))


if __name__ == "__main__":
    main()
