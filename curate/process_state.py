"""What Linux says of a process: its scheduler state, the CPU it used and its largest resident set."""

from __future__ import annotations


def process_state(pid: int) -> tuple[str, int]:
    """(scheduler state, CPU ticks used) of a process; ("", 0) where there is no /proc."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as f:
            fields = f.read().rpartition(b")")[2].split()
    except OSError:
        return "", 0
    return fields[0].decode(), int(fields[11]) + int(fields[12])


def peak_rss_kb(pid: int) -> int:
    """A process's largest resident set so far (KiB); 0 where there is no /proc."""
    try:
        with open(f"/proc/{pid}/status", "rb") as f:
            return next((int(line.split()[1]) for line in f if line.startswith(b"VmHWM:")), 0)
    except OSError:
        return 0
