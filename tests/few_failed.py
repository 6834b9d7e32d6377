"""Names the tests that failed in the last run; exit code 0 when they are few enough to be tried once more."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

FEW: Final = 8
FAILED: Final = Path(__file__).parents[1] / ".pytest_cache" / "v" / "cache" / "lastfailed"


def main() -> None:
    """Exit code 1 when nothing was recorded or too much failed."""
    names = sorted(json.loads(FAILED.read_text(encoding="utf-8"))) if FAILED.is_file() else []
    print(*(f"failed: {name}" for name in names), sep="\n")
    sys.exit(0 if 0 < len(names) <= FEW else 1)


if __name__ == "__main__":
    main()
