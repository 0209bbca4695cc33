"""Part `sanitizer`: the kernels' checks under compute-sanitizer, which comes with the CUDA toolkit."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.gpu.findings import Check, Part
from benchmarks.report import Table
from benchmarks.task import ROOT
from impasto.errors import UnavailableError

TOOLS = {
    "memcheck": "accesses outside of memory, and misaligned ones",
    "racecheck": "races in shared memory",
    "initcheck": "reads of device memory that nothing was written to",
    "synccheck": "barriers that not all threads reach",
}
_FOUND_ERRORS = 86
"""The exit code that it is told to end with where it found something."""


def part(quick: bool) -> Part:  # noqa: ARG001 - the tools slow kernels down so much that only small sizes make sense
    """Run each tool over the quick checks of the kernels."""
    found = Part("Sanitizer")
    with found.attempt("compute-sanitizer"):
        command = find_sanitizer()
        for tool in TOOLS:
            print(f"  {tool} …", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                checks = [sys.executable, "-m", "benchmarks.gpu.worker", "checks", f"{folder}/part.json", "--quick"]
                options = ["--tool", tool, "--error-exitcode", str(_FOUND_ERRORS)]
                done = subprocess.run(
                    [command, *options, *checks], cwd=ROOT, capture_output=True, text=True, check=False
                )
            judge(found, tool, done.returncode, done.stdout + done.stderr)
        found.body.append(Table(("tool", "looks for"), tuple(TOOLS.items())))
    return found


def find_sanitizer() -> str:
    """Return the command's path; raise `UnavailableError` where it is not installed."""
    folders = [Path(home, "bin") for home in (os.environ.get("CUDA_HOME"), "/usr/local/cuda") if home]
    command = shutil.which("compute-sanitizer")
    for folder in folders:
        command = command or shutil.which("compute-sanitizer", path=str(folder))
    if command is None:
        raise UnavailableError("compute-sanitizer is not installed: it comes with the CUDA toolkit (CUDA_HOME, PATH)")
    return command


def judge(found: Part, tool: str, code: int, output: str) -> None:
    """Add what a tool's run says: the number of errors, or that it did not run through."""
    lines = [line for line in output.strip().splitlines() if line.strip()]
    if code not in (0, _FOUND_ERRORS):
        found.failures.append(f"{tool} ended with {code}: {lines[-1] if lines else 'no message'}")
        return
    count = re.search(r"(?:ERROR SUMMARY: |RACECHECK SUMMARY: )(\d+)", output)
    errors = float(count[1]) if count else float(code != 0)
    if code and not errors:
        errors = 1.0
    found.checks.append(Check(tool, errors, 0, "errors"))
    if errors:
        first = next((line for line in lines if re.match(r"=+ (?!COMPUTE-SANITIZER)", line)), "")
        found.body.append(f"`{tool}`: {first.lstrip('= ')}")
