"""Check the wheel: every module and data file of the sources is in it, nothing else, and it stays small."""

import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIMIT = 2_000_000
PACKAGES = {"impasto": "impasto", "models": "impasto/models", "export": "impasto/export",
            "optimize": "impasto/optimize", "runtime": "impasto/runtime"}  # fmt: skip

wheel = Path(sys.argv[1])
expected = {
    f"{package}/{path.relative_to(ROOT / folder).as_posix()}"
    for folder, package in PACKAGES.items()
    for path in (ROOT / folder).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
}
with zipfile.ZipFile(wheel) as archive:
    found = {name for name in archive.namelist() if ".dist-info/" not in name}
problems = [f"missing from the wheel: {name}" for name in sorted(expected - found)]
problems += [f"should not be in the wheel: {name}" for name in sorted(found - expected)]
if wheel.stat().st_size > LIMIT:
    problems.append(f"the wheel has {wheel.stat().st_size} bytes, more than {LIMIT}")
if problems:
    sys.exit("\n".join(problems))
print(f"{wheel.name}: {len(found)} files, {wheel.stat().st_size} bytes")
