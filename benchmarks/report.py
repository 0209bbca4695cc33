"""What a benchmark reports, and how it becomes Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.machine import Machine


@dataclass(frozen=True)
class Table:
    """A header and rows of as many cells; the first column is text, the others are figures."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """Return the table, columns padded so that it reads well as plain text too."""
        lines = [self.header, *self.rows]
        widths = [max(3, *(len(line[column]) for line in lines)) for column in range(len(self.header))]
        rule = "|".join(["", "-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:]), ""])

        def padded(line: Sequence[str]) -> str:
            first, *rest = zip(line, widths, strict=True)
            return "| " + " | ".join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in rest)]) + " |"

        return "\n".join([padded(self.header), rule, *map(padded, self.rows)])


@dataclass(frozen=True)
class Bound:
    """A bound that the project sets itself, what this run measured, and whether that keeps it."""

    what: str
    wanted: str
    measured: str
    kept: bool


@dataclass(frozen=True)
class Section:
    """What one benchmark found: a title, paragraphs and tables in order, bounds, and the raw figures as JSON types."""

    title: str
    body: tuple[str | Table, ...]
    bounds: tuple[Bound, ...]
    data: Mapping[str, Any]

    def markdown(self) -> str:
        """Return the section, one heading deep."""
        parts = [part.markdown() if isinstance(part, Table) else part for part in self.body]
        return "\n\n".join([f"## {self.title}", *parts])


def document(machine: Machine, sections: Sequence[Section], quick: bool) -> str:
    """Return the whole report: where and when, the bounds, then each section."""
    parts = ["# Benchmarks", _WRITTEN, machine.markdown()]
    if quick:
        parts.append("**A quick run: small pictures and few repetitions. It shows that the suite works, no more.**")
    if machine.load is not None and machine.load > machine.cpus / 2:
        parts.append("**The machine was busy with something else when the run began: do not rely on these times.**")
    bounds = [bound for section in sections for bound in section.bounds]
    if bounds and not quick:
        rows = tuple((b.what, b.measured, b.wanted, "yes" if b.kept else "**no**") for b in bounds)
        parts += ["## Bounds", "What the project wants of itself, and what this run measured.",
                  Table(("what", "measured", "wanted", "kept"), rows).markdown()]  # fmt: skip
    return "\n\n".join([*parts, *(section.markdown() for section in sections)]) + "\n"


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return ``median (least–most)``; a single value alone."""
    if len(values) == 1:
        return format(values[0], form)
    return f"{median(values):{form}} ({min(values):{form}}–{max(values):{form}})"


_WRITTEN = (
    "From one run of `make bench` on one machine, which `ARGS=--write` writes into `docs/`, beside the raw figures as "
    "JSON. Figures in parentheses are the least and the most over the rounds of the run. Programs that are compared "
    "take turns, each in a process of its own, so that a busy moment of the machine meets them alike."
)
