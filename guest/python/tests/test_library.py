"""The real libhmm, which HMM_LIBRARY names, without a device."""

import array
import errno
import os
import unittest

import hmm
from hmm import _library, work
from hmm._uapi import JobDescriptor, Operation


class LibraryTest(unittest.TestCase):
    def test_the_library_has_every_function(self):
        library = _library.default()
        self.assertRegex(library.hmm_version().decode(), r"^\d+\.\d+\.\d+$")

    def test_another_library_is_refused_by_name(self):
        with self.assertRaisesRegex(OSError, "not the libhmm of this package"):
            _library.load("libc.so.6")
        with self.assertRaises(OSError):
            _library.load("/nowhere/libhmm.so")

    def test_a_device_that_is_not_there_is_an_error_with_its_errno(self):
        with self.assertRaisesRegex(hmm.CallError, "opening /nowhere: ") as caught:
            hmm.Device("/nowhere")
        self.assertEqual(caught.exception.errno, errno.ENOENT)

    def test_a_file_of_another_kind_refuses_each_call(self):
        with hmm.Device("/dev/null") as device:
            self.assertEqual(os.fstat(device.fileno()).st_rdev, os.stat("/dev/null").st_rdev)
            for call in (device.info, device.counters, device.bind):
                with self.assertRaisesRegex(hmm.CallError, "does not know this call") as caught:
                    call()
                self.assertEqual(caught.exception.errno, errno.ENOTTY)
            with self.assertRaises(hmm.CallError):
                device.residency_of(0, 0x1000, 4096)
        with self.assertRaises(ValueError):
            device.info()

    def test_jobs_move_and_end_as_the_driver_says(self):
        # Nothing is bound, but the calls are the real ones.
        with hmm.Device("/dev/null") as device:
            space = hmm.Space(device)
            numbers = array.array("Q", range(1000))
            for call in (
                lambda: space.run(work.sum(numbers)),
                lambda: space.submit(work.sum(numbers)),
                lambda: space.migrate(numbers),
                lambda: space.residency(numbers),
                space.bind_again,
            ):
                with self.assertRaises(hmm.CallError) as caught:
                    call()
                self.assertEqual(caught.exception.errno, errno.ENOTTY)
            numbers.append(1)  # No call has kept it.

    def test_the_library_takes_the_arguments_of_every_operation(self):
        library = _library.default()
        for operation, arguments in hmm._uapi.ARGUMENTS.items():
            raw = [1 if kind == "Element" else 0 for _, kind in arguments]
            values = (_library.c_uint64 * len(raw))(*raw)
            job = JobDescriptor()
            made = library.hmm_job_init(job, operation, values, len(raw))
            self.assertEqual(made, 0, operation)
            self.assertEqual(Operation(job.operation), operation)
            too_few = library.hmm_job_init(job, operation, values, len(raw) - 1)
            self.assertEqual(too_few, -errno.EINVAL, operation)
