"""The report of a run: Markdown for people, and where it is kept."""

from __future__ import annotations

import re
from collections.abc import Mapping

from benchmarks.gpu.findings import Check, Part
from benchmarks.report import Table

_SIZE = re.compile(r" \d+(?:×\d+)?\b")


def document(gpu: str, date: str, parts: Mapping[str, Part], quick: bool) -> str:
    """Return the whole report: the verdict, what is wrong and what was skipped, the targets, then each part."""
    blocks = [f"# GPU check: {gpu}, {date}", "From one run of `make gpu-check` on one host."]
    if quick:
        blocks.append("**A quick run: small sizes and few repetitions. Its times say nothing.**")
    blocks.append(verdict(parts))
    wrong = [f"- {name}: {line}" for name, part in parts.items() for line in part.wrong]
    skipped = [f"- {name}: {line}" for name, part in parts.items() for line in part.skipped]
    if wrong:
        blocks += ["## Wrong", "\n".join(wrong)]
    if skipped:
        blocks += ["## Not run", "\n".join(skipped)]
    targets = [target for part in parts.values() for target in part.targets]
    if targets and not quick:
        rows = tuple((t.what, t.measured, t.wanted, "yes" if t.kept else "**no**") for t in targets)
        blocks += ["## Targets", Table(("what", "measured", "wanted", "kept"), rows).markdown()]
    for part in parts.values():
        blocks += [f"## {part.title}", *(x.markdown() if isinstance(x, Table) else x for x in part.body)]
        if part.checks:
            blocks.append(_checks(part.checks).markdown())
    return "\n\n".join(blocks) + "\n"


def verdict(parts: Mapping[str, Part]) -> str:
    """Return one line: how many checks there were, where what is wrong is, and how much was left out."""
    checks = sum(len(part.checks) for part in parts.values())
    wrong = {name: len(part.wrong) for name, part in parts.items() if part.wrong}
    if wrong:
        places = ", ".join(f"{count} in {name}" for name, count in wrong.items())
        return f"{sum(wrong.values())} wrong ({places}), of {checks} checks."
    if not checks:
        return "Nothing could run."
    skipped = sum(len(part.skipped) for part in parts.values())
    return f"All of {checks} checks are right{f', {skipped} left out' if skipped else ''}."


def file_stem(gpu: str, date: str) -> str:
    """Return the name of a report's files without suffix, such as ``nvidia-h200-2026-01-31``."""
    name = re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-") or "gpu"
    return f"{name}-{date}"


def _checks(checks: list[Check]) -> Table:
    """Return a row for the checks that differ only in their sizes: the one that is nearest its bound."""
    groups: dict[str, list[Check]] = {}
    for check in checks:
        groups.setdefault(_SIZE.sub("", check.what), []).append(check)
    rows = []
    for name, group in groups.items():
        c = max(group, key=_nearness)
        right = sum(check.right for check in group)
        cells = (
            f"{right} of {len(group)}",
            " ".join(_SIZE.findall(c.what)).strip(),
            f"{c.error:.2g}",
            f"{c.bound:.2g}",
            c.unit,
        )
        rows.append((name if right == len(group) else f"**{name}**", *cells))
    return Table(("checks", "right", "nearest its bound", "error", "at most", "unit"), tuple(rows))


def _nearness(check: Check) -> tuple[bool, float]:
    """Order checks: wrong ones last, then by the share of the bound that the error takes."""
    share = check.error / check.bound if check.bound else check.error
    return not check.right, share if check.right else 0.0
