"""Use a virtio-hmm accelerator from a program in the guest.

The accelerator works on the program's own addresses. Nothing is registered,
pinned or copied beforehand: any object with a buffer (numpy arrays, array.array,
bytearray, memoryview, ctypes arrays, mmap) is worked on where it is::

    import array
    import hmm

    with hmm.Device("/dev/hmm0").bind() as space:
        numbers = array.array("Q", range(1_000_000))
        space.migrate(numbers)
        outcome = space.run(hmm.work.sum(numbers))
        print(outcome.value, outcome.usage.faults)

A buffer that a job works on cannot be resized or freed before the job has
ended, whatever becomes of its other names. A job that did not succeed raises
JobError; a call that the driver refuses raises CallError, which is an OSError.
Functions may be called from any thread, and other threads run while a call waits.

The package calls libhmm, the C library, by ctypes. It looks for the file that
the environment variable HMM_LIBRARY names, else for libhmm.so.0 where the
system looks for libraries.
"""

from . import work
from ._uapi import Counters, Destination, DeviceState, DriverStatistics, Element, Info
from ._uapi import Operation, Reason, Statistics, Status
from .device import Device, Migration, PageState, Place
from .errors import CallError, Error, JobError, Usage
from .space import Job, Outcome, Space

__all__ = [
    "CallError",
    "Counters",
    "Destination",
    "Device",
    "DeviceState",
    "DriverStatistics",
    "Element",
    "Error",
    "Info",
    "Job",
    "JobError",
    "Migration",
    "Operation",
    "Outcome",
    "PageState",
    "Place",
    "Reason",
    "Space",
    "Statistics",
    "Status",
    "Usage",
    "work",
]
