"""``python -m benchmarks.gpu``: runs the parts of a GPU check, prints their report, and judges.

Exit codes: 0, all that could run is right; 1, something is wrong; 3, nothing could run, with what is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

from benchmarks.gpu.document import document, file_stem, verdict
from benchmarks.gpu.findings import Part
from benchmarks.gpu.worker import PARTS, run
from benchmarks.task import ROOT
from impasto.errors import ImpastoError
from impasto.runtime.gpu.cuda import open_device

FOLDER = ROOT / "docs" / "gpu"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; return the exit code."""
    options = _parser().parse_args(arguments)
    if options.write and (options.quick or options.parts):
        _parser().error("--write publishes one whole run: leave out --quick and the parts")
    try:
        with open_device() as device:
            gpu = device.name
    except ImpastoError as error:
        print(f"gpu-check: {error}", file=sys.stderr)
        return error.exit_code
    today = date.today().isoformat()
    stem = FOLDER / file_stem(gpu, today) if options.write else options.write_to
    parts: dict[str, Part] = {}
    for name in options.parts or PARTS:
        print(f"{name} …", file=sys.stderr, flush=True)
        parts[name] = run(name, options.quick)
        text = document(gpu, today, parts, options.quick)
        if stem is not None:  # after each part: a whole run takes long, and a machine may go
            _write(stem, text, {"gpu": gpu, "date": today, "quick": options.quick}, parts)
    print(text, end="")
    return judge(parts)


def judge(parts: Mapping[str, Part]) -> int:
    """Tell on standard error what is wrong, and return the exit code."""
    for name, part in parts.items():
        for line in part.wrong:
            print(f"gpu-check: {name}: {line}", file=sys.stderr)
    print(f"gpu-check: {verdict(parts)}", file=sys.stderr)
    if any(part.wrong for part in parts.values()):
        return 1
    if not any(part.ran for part in parts.values()):
        for name, part in parts.items():
            for line in part.skipped:
                print(f"gpu-check: {name}: {line}", file=sys.stderr)
        return 3
    return 0


def _write(stem: Path, text: str, head: dict[str, object], parts: Mapping[str, Part]) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    # Not with_suffix: a GPU's name may have a point in it.
    stem.with_name(f"{stem.name}.md").write_text(text, encoding="utf-8")
    figures = head | {"parts": {name: part.to_json() for name, part in parts.items()}}
    stem.with_name(f"{stem.name}.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Prove kernels, engines and plans on this host's GPU; measure them.",
    )
    # Not `choices`: with nargs="*" argparse holds the default against them.
    parser.add_argument("parts", nargs="*", type=_name, metavar="PART", help=f"{', '.join(PARTS)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes, few repetitions: shows that it works")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--write-to", type=Path, metavar="STEM", help="write STEM.md, and STEM.json with raw figures")
    where.add_argument("--write", action="store_true", help="write docs/gpu/<gpu>-<date>.md and .json: one whole run")
    return parser


def _name(text: str) -> str:
    if text not in PARTS:
        raise argparse.ArgumentTypeError(f"unknown part {text!r}: choose among {', '.join(PARTS)}")
    return text


if __name__ == "__main__":
    sys.exit(main())
