"""Stands in for tegrastats: prints the lines of a file, one each interval, over and over; what follows the file says how it ends.

fake_tegrastats.py FILE PID_FILE MODE --interval MS     MODE: forever, once, cut, deaf
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    """Print."""
    file, pid_file, mode, _, interval = sys.argv[1:]
    if mode == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(pid_file).write_text(str(os.getpid()), encoding="ascii")
    lines = Path(file).read_bytes().splitlines(keepends=True)
    while True:
        for line in lines:
            half = len(line) // 2 if mode == "cut" else len(line)
            os.write(1, line[:half])  # a pipe gives what has come, not whole lines
            time.sleep(0.02)
            os.write(1, line[half:])
            time.sleep(int(interval) / 1_000)
        if mode == "once":
            os.write(1, b"RAM 1/2MB VDD_IN 77")
            return


main()
