"""Failures of the machine rather than of the program: a disk that refuses to be written, a device without memory.

Commands name the file or the batch where they can. This is the message for all other places.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from llm2slm.atomic import FULL, REFUSED
from llm2slm.out_of_memory import is_out_of_memory
from llm2slm.types import reason_of


def of_machine(error: Exception) -> str | None:
    """The message for an error of disk or memory, on one line; None for any other error, which is a defect."""
    cause: BaseException | None = error
    while cause is not None and not (isinstance(cause, OSError) and cause.errno in REFUSED):
        cause = cause.__cause__ or cause.__context__  # libraries wrap the errors of the operating system
    if isinstance(cause, OSError) and cause.errno is not None:
        named = [Path(os.fsdecode(name)) for name in (cause.filename2, cause.filename) if isinstance(name, str | bytes)]
        what = f"{named[0]}: " if named else ""
        advice = "free space on this disk" if cause.errno in FULL else "check its permissions, or use another folder"
        return f"{what}cannot be read or written ({os.strerror(cause.errno)}); {advice}"
    if "torch" in sys.modules and is_out_of_memory(error):
        return f"out of memory ({reason_of(error)}); use smaller batches, a smaller model, or another device"
    return None
