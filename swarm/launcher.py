"""Starts a program that dies with its parent. Run as a script: ``launcher.py PARENT_PID PROGRAM ARGUMENTS...``.

It asks the kernel to kill this process when its parent ends (prctl(2), PR_SET_PDEATHSIG), which survives the exec,
and then becomes the program. A wrapper instead of ``preexec_fn``: forking a process with threads and running Python
in the child can deadlock. Where the kernel has no such call (macOS) the program simply starts.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Replaces this process by the program named in the arguments."""
    parent, program, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # it ended before we asked
            sys.exit(1)
    os.execv(program, [program, *arguments])


if __name__ == "__main__":
    main()
