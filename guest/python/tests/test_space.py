"""Jobs, their memory, and their ends, on a device that tests control."""

import array
import errno
import gc
import threading
import unittest
import weakref

import hmm
from hmm import work

from .fake import FakeLibrary


class SpaceTest(unittest.TestCase):
    def setUp(self):
        self.library = FakeLibrary()
        self.space = hmm.Device(library=self.library).bind()
        self.addCleanup(self.space.close)

    def test_a_job_that_ended_well_has_its_value_and_its_costs(self):
        job = self.space.submit(work.sum(array.array("Q", [1, 2])))
        self.library.end(job.fence, values=(3,), faults=2, nanoseconds=5, system_bytes=16)
        outcome = job.wait()
        self.assertEqual((outcome.value, outcome.usage.faults), (3, 2))
        self.assertEqual((outcome.usage.time, outcome.usage.system_bytes), (5e-9, 16))
        self.assertEqual(job.wait(), outcome, "and again")

    def test_a_job_that_failed_raises_how_and_where(self):
        job = self.space.submit(work.sum(array.array("Q", [1])))
        self.library.end(
            job.fence, hmm.Status.FAULT, reason=hmm.Reason.UNMAPPED, address=0x7000, access=3
        )
        with self.assertRaisesRegex(hmm.JobError, "did not succeed") as caught:
            job.wait()
        error = caught.exception
        self.assertEqual((error.status, error.reason), (hmm.Status.FAULT, hmm.Reason.UNMAPPED))
        self.assertEqual((error.address, error.access), (0x7000, {"read", "write"}))
        with self.assertRaises(hmm.JobError):
            job.wait()

    def test_memory_is_kept_while_the_job_runs_and_no_longer(self):
        numbers = bytearray(64)
        job = self.space.submit(work.fill(numbers, 7))
        with self.assertRaises(BufferError):
            numbers.clear()
        del job
        gc.collect()
        with self.assertRaises(BufferError, msg="though nobody can wait for it any more"):
            numbers.clear()
        self.space.close()
        gc.collect()
        numbers.clear()
        self.assertEqual(self.library.cancelled, [1])

    def test_memory_is_given_back_when_the_job_has_ended(self):
        numbers = bytearray(64)
        job = self.space.submit(work.fill(numbers, 7))
        self.library.end(job.fence)
        job.wait()
        del job
        gc.collect()
        numbers.clear()

    def test_an_object_lives_as_long_as_its_job(self):
        numbers = array.array("Q", [1, 2])
        gone = weakref.ref(numbers)
        job = self.space.submit(work.sum(numbers))
        del numbers
        gc.collect()
        self.assertIsNotNone(gone())
        self.library.end(job.fence)
        job.wait()
        del job
        gc.collect()
        self.assertIsNone(gone())

    def test_a_job_that_takes_too_long_is_a_timeout_and_goes_on(self):
        job = self.space.submit(work.sum(array.array("Q", [1])))
        with self.assertRaises(TimeoutError):
            job.wait(0)
        with self.assertRaises(TimeoutError):
            job.wait(0.01)
        self.library.end(job.fence, values=(1,))
        self.assertEqual(job.wait(0).value, 1)

    def test_a_signal_does_not_end_a_wait_unless_its_handler_raises(self):
        job = self.space.submit(work.sum(array.array("Q", [1])))
        self.library.interruptions = [-errno.EINTR, -errno.EINTR]
        self.library.end(job.fence, values=(9,))
        self.assertEqual(job.wait().value, 9)
        self.assertEqual(self.library.interruptions, [])

    def test_a_run_that_is_interrupted_cancels_its_job_before_its_memory_is_free(self):
        class Interrupted(BaseException):
            pass

        numbers = bytearray(64)
        waited = self.library.hmm_wait

        def interrupt(*arguments):
            self.library.hmm_wait = waited
            raise Interrupted

        self.library.hmm_wait = interrupt
        with self.assertRaises(Interrupted):
            self.space.run(work.fill(numbers, 7))
        self.assertEqual(self.library.cancelled, [1])
        gc.collect()
        numbers.clear()

    def test_memory_of_a_submission_that_is_interrupted_is_kept_until_the_end(self):
        class Interrupted(BaseException):
            pass

        numbers = bytearray(64)
        submit = self.library.hmm_submit

        def interrupt(*arguments):
            submit(*arguments)
            raise Interrupted

        self.library.hmm_submit = interrupt
        with self.assertRaises(Interrupted):
            self.space.submit(work.fill(numbers, 7))
        gc.collect()
        with self.assertRaises(BufferError):
            numbers.clear()
        self.space.close()
        gc.collect()
        numbers.clear()
        self.assertEqual(self.library.cancelled, [1])

    def test_the_first_of_several_jobs_is_found(self):
        jobs = [self.space.submit(work.sum(array.array("Q", [n]))) for n in range(3)]
        self.assertIsNone(self.space.wait_any(jobs, 0))
        self.assertIsNone(self.space.wait_any([]))
        self.library.end(jobs[1].fence, values=(1,))
        ended = self.space.wait_any(jobs)
        self.assertIs(ended, jobs[1])
        self.assertEqual(ended.wait().value, 1)
        self.assertIs(self.space.wait_any(jobs, 0), jobs[1], "it has ended still")

    def test_a_call_that_is_refused_is_an_oserror_with_its_errno(self):
        with self.assertRaisesRegex(OSError, "binding this process.*error 16") as caught:
            self.space.bind_again()
        self.assertEqual(caught.exception.errno, errno.EBUSY)
        for _ in range(3):
            self.space.submit(work.sum(array.array("Q", [1])))
        with self.assertRaises(hmm.CallError) as caught:
            self.space.submit(work.sum(array.array("Q", [1])))
        self.assertEqual(caught.exception.errno, errno.EAGAIN)

    def test_pages_are_those_of_the_buffer(self):
        numbers = array.array("Q", range(1000))
        address = numbers.buffer_info()[0]
        migration = self.space.migrate(numbers)
        self.assertEqual((migration.moved, migration.skipped), (2, 0))
        self.space.migrate(numbers, hmm.Destination.SYSTEM)
        self.space.migrate(numbers, populate=True)
        self.assertEqual(
            self.library.moves,
            [(address, 8000, 1, 0), (address, 8000, 0, 0), (address, 8000, 1, 1)],
        )
        one, other = self.space.residency(numbers)
        self.assertEqual((one.place, one.is_mapped), (hmm.Place.DEVICE, True))
        self.assertEqual((other.place, other.is_writable), (hmm.Place.SYSTEM, True))
        self.assertFalse(one.is_writable or other.is_mapped or one.is_huge)

    def test_a_closed_device_is_closed_once_and_refuses_calls(self):
        with self.space:
            pass
        self.space.close()
        self.assertEqual(self.library.closed, 1)
        with self.assertRaisesRegex(ValueError, "closed"):
            self.space.submit(work.sum(array.array("Q", [1])))
        with self.assertRaisesRegex(ValueError, "closed"):
            self.space.fileno()

    def test_closing_ends_the_wait_of_another_thread_first(self):
        job = self.space.submit(work.sum(array.array("Q", [1])))
        ended = []

        def wait():
            try:
                job.wait()
            except hmm.JobError as error:
                ended.append(error.status)
            except hmm.CallError as error:
                ended.append(error.errno)

        thread = threading.Thread(target=wait)
        thread.start()
        self.library.waits.acquire()
        self.space.close()
        thread.join(10)
        self.assertFalse(thread.is_alive())
        # Whoever is first fetches the result.
        self.assertIn(ended, [[hmm.Status.CANCELLED], [errno.ENOENT]])
        self.assertEqual(self.library.closed, 1)

    def test_a_device_that_is_not_there_is_an_error_with_its_path(self):
        with self.assertRaisesRegex(OSError, "opening /dev/hmm7") as caught:
            hmm.Device("/dev/hmm7", library=self.library)
        self.assertEqual(caught.exception.errno, errno.ENOENT)
