"""``python -m node`` is ``nodestr``."""

from __future__ import annotations

from node.cli import main

if __name__ == "__main__":
    main()
