"""Throw faults at random workflow programs, and check every promise: ``python storm/run.py --help``."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    # This script's own folder is no place to import from: its modules are in the package `storm`.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)
    from storm.command import main as command

    return command()


if __name__ == "__main__":
    sys.exit(main())
