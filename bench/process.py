"""What the kernel knows of a process (Linux)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class CpuTime:
    """CPU time, user and system, in seconds."""

    all_s: float
    """Of all threads."""
    main_s: float
    """Of the main thread, which runs the event loop."""

    def __sub__(self, earlier: CpuTime) -> CpuTime:
        return CpuTime(self.all_s - earlier.all_s, self.main_s - earlier.main_s)


def cpu_time(pid: int) -> CpuTime:
    """What a process has used since its start. Raises OSError."""
    return CpuTime(_ticks_s(f"/proc/{pid}/stat"), _ticks_s(f"/proc/{pid}/task/{pid}/stat"))


def _ticks_s(stat_file: str) -> float:
    after_name = Path(stat_file).read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / _TICKS_PER_S


def rss_bytes(pid: int) -> int:
    """Memory of a process that is resident now. Raises OSError."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no VmRSS for process {pid}")
