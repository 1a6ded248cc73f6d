"""Names of threads as the operating system shows them, in `top -H` for one."""

import contextlib
import threading
from pathlib import Path

_LONGEST = 15
"""Bytes of a name that Linux keeps."""


def name_thread(name: str) -> None:
    """Name the thread that calls this, where the system takes names from a file (Linux); elsewhere do nothing."""
    with contextlib.suppress(OSError):
        Path(f"/proc/self/task/{threading.get_native_id()}/comm").write_text(name[:_LONGEST])
