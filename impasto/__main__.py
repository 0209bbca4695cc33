"""``python -m impasto``: the command line, where the script ``impasto`` is not on the path."""

from __future__ import annotations

import sys

from impasto.cli import main

if __name__ == "__main__":
    sys.exit(main())
