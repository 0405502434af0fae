"""`scripts/release`."""

from __future__ import annotations

from release.steps import main

if __name__ == "__main__":
    main()
