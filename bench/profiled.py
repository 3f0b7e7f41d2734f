"""The node under cProfile: ``python -m bench.profiled FILE serve --config …``.

SIGUSR1 starts the profile of the event loop's thread, SIGUSR2 ends it and writes FILE. The
database's threads have profiles of their own, from their start; they are written to FILE.threads
when the node ends.
"""

from __future__ import annotations

import cProfile
import pstats
import signal
import sys
import threading
from types import FrameType

from node.cli import app

THREADS_SUFFIX = ".threads"


def main(file: str, arguments: list[str]) -> None:
    """Run ``nodestr`` with ``arguments``; profiles go to ``file`` and next to it."""
    profile = cProfile.Profile()
    threads: list[cProfile.Profile] = []

    def in_new_thread(_: FrameType, __: str, ___: object) -> None:
        """Called at the first thing a new thread does."""
        own = cProfile.Profile()
        threads.append(own)
        own.enable()

    def begin(_: int, __: FrameType | None) -> None:
        profile.enable()

    def end(_: int, __: FrameType | None) -> None:
        profile.disable()
        profile.dump_stats(file)

    threading.setprofile(in_new_thread)
    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    try:
        app(args=arguments, prog_name="nodestr")
    finally:
        if threads:
            stats = pstats.Stats(threads[0])
            for own in threads[1:]:
                stats.add(own)
            stats.dump_stats(file + THREADS_SUFFIX)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
