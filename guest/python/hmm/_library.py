"""Finds libhmm, and declares its functions as hmm.h does.

It knows nothing of Python's buffers, nor of how long memory lives.
"""

from __future__ import annotations

import ctypes
import os
import threading
from ctypes import POINTER, c_char_p, c_int, c_int32, c_int64, c_size_t, c_uint8, c_uint32
from ctypes import c_uint64, c_void_p
from typing import Any

from ._uapi import Counters, Info, JobDescriptor, JobReply

#: The environment variable that names the library's file.
VARIABLE = "HMM_LIBRARY"

#: The name by which the system knows the library.
NAME = "libhmm.so.0"


class CMigration(ctypes.Structure):
    """struct hmm_migration."""

    moved: int
    skipped: int
    no_memory: int
    _fields_ = [("moved", c_uint64), ("skipped", c_uint64), ("no_memory", c_uint64)]


#: Each function: the type of its result, and of its arguments.
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "hmm_open": (c_int, [c_char_p, POINTER(c_void_p)]),
    "hmm_close": (None, [c_void_p]),
    "hmm_fd": (c_int, [c_void_p]),
    "hmm_bind": (c_int, [c_void_p]),
    "hmm_info": (c_int, [c_void_p, POINTER(Info)]),
    "hmm_counters": (c_int, [c_void_p, POINTER(Counters)]),
    "hmm_job_init": (c_int, [POINTER(JobDescriptor), c_uint32, POINTER(c_uint64), c_size_t]),
    "hmm_submit": (
        c_int,
        [c_void_p, POINTER(JobDescriptor), c_uint32, c_int, POINTER(c_uint64)],
    ),
    "hmm_wait": (c_int, [c_void_p, c_uint64, c_int64, POINTER(JobReply)]),
    "hmm_wait_any": (
        c_int,
        [c_void_p, POINTER(c_uint64), c_uint32, c_int64, POINTER(c_uint64), POINTER(JobReply)],
    ),
    "hmm_cancel": (c_int, [c_void_p, c_uint64]),
    "hmm_migrate": (
        c_int,
        [c_void_p, c_void_p, c_size_t, c_uint32, c_uint32, POINTER(CMigration)],
    ),
    "hmm_residency": (
        c_int64,
        [c_void_p, c_int32, c_void_p, c_size_t, POINTER(c_uint8), c_size_t],
    ),
    "hmm_error_text": (c_size_t, [c_int, c_void_p, c_size_t]),
    "hmm_job_text": (c_size_t, [POINTER(JobReply), c_void_p, c_size_t]),
    "hmm_version": (c_char_p, []),
}

_lock = threading.Lock()
_loaded: Any = None


def load(path: str | None = None) -> Any:
    """Loads the library from a file, by default from where the package looks for it.

    Raises OSError when there is no such file, or it is another library.
    """
    library = ctypes.CDLL(path or os.environ.get(VARIABLE) or NAME)
    for name, (result, arguments) in FUNCTIONS.items():
        try:
            function = getattr(library, name)
        except AttributeError as error:
            raise OSError(f"{library._name} is not the libhmm of this package: {error}") from None
        function.restype = result
        function.argtypes = arguments
    return library


def default() -> Any:
    """The library where the package looks for it, loaded once."""
    global _loaded
    with _lock:
        if _loaded is None:
            _loaded = load()
        return _loaded


def text(write: Any, what: Any) -> str:
    """The text that hmm_error_text() or hmm_job_text() has for something."""
    buffer = ctypes.create_string_buffer(512)
    write(what, buffer, len(buffer))
    return buffer.value.decode("utf-8", "replace")
