"""``python -m benchmarks``: runs benchmarks and prints their tables as Markdown."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks import (
    bank,
    convergence,
    evaluation,
    huge,
    memory,
    profiling,
    quality,
    scaling,
    sizes,
    solver_cost,
    startup,
    time_to_loss,
)
from benchmarks.machine import Machine, this_machine
from benchmarks.report import Section, document
from benchmarks.task import ROOT
from impasto.errors import ImpastoError

BENCHMARKS: dict[str, Callable[[Machine, bool], Section]] = {
    "evaluation": evaluation.section,
    "sizes": sizes.section,
    "scaling": scaling.section,
    "time_to_loss": time_to_loss.section,
    "profile": profiling.section,
    "bank": bank.section,
    "quality": quality.section,
    "memory": memory.section,
    "convergence": convergence.section,
    "startup": startup.section,
    "solvers": solver_cost.section,
}
LONG: dict[str, Callable[[Machine, bool], Section]] = {"huge": huge.section}
"""Those that are run only where they are named."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments ask for; return the exit code."""
    options = _parser().parse_args(arguments)
    if options.write and (options.quick or options.names):
        _parser().error("--write publishes one whole run: leave out --quick and the names")
    machine = this_machine()
    sections: dict[str, Section] = {}
    try:
        for name in options.names or BENCHMARKS:
            print(f"{name} …", file=sys.stderr, flush=True)
            sections[name] = (BENCHMARKS | LONG)[name](machine, options.quick)
    except ImpastoError as error:
        print(document(machine, list(sections.values()), options.quick), end="")  # what took long is not lost
        print(error, file=sys.stderr)
        return error.exit_code
    text = document(machine, list(sections.values()), options.quick)
    figures = {"machine": asdict(machine), "quick": options.quick}
    figures |= {name: section.data for name, section in sections.items()}
    print(text, end="")
    if options.write:
        options.write_to = ROOT / "docs" / "benchmarks"
    if options.write_to:
        options.write_to.with_suffix(".md").write_text(text, encoding="utf-8")
        _write_json(options.write_to.with_suffix(".json"), figures)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure Impasto, and PyTorch beside it.")
    # Not `choices`: with nargs="*" argparse holds the default against them.
    known = f"{', '.join(BENCHMARKS)} (default: all); {', '.join(LONG)}"
    parser.add_argument("names", nargs="*", type=_name, metavar="NAME", help=known)
    parser.add_argument("--quick", action="store_true", help="small pictures, few repetitions: shows that it works")
    parser.add_argument("--write-to", type=Path, metavar="STEM", help="write STEM.md, and STEM.json with raw figures")
    parser.add_argument("--write", action="store_true", help="write docs/benchmarks.md and .json: one whole run")
    return parser


def _name(text: str) -> str:
    if text not in BENCHMARKS | LONG:
        raise argparse.ArgumentTypeError(f"unknown benchmark {text!r}: choose among {', '.join(BENCHMARKS | LONG)}")
    return text


def _write_json(path: Path, figures: dict[str, object]) -> None:
    path.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
