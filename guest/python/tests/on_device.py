# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""Tests on a device: numpy arrays and other buffers are worked on where they are.

They need a guest with the device, numpy, the package and libhmm; `cargo xtask test languages` runs
them.
"""

import array
import ctypes
import errno
import gc
import mmap
import threading
import unittest

import hmm
import numpy
from hmm import work

PAGE = 4096


def random(seed):
    """Numbers that are the same in each run."""
    return numpy.random.default_rng(seed)


def places(space, buffer):
    """The places of the pages of a buffer."""
    return {page.place for page in space.residency(buffer)}


class OnDevice(unittest.TestCase):
    """A test with a space."""

    def setUp(self):
        self.space = hmm.Device("/dev/hmm0").bind()
        self.addCleanup(self.space.close)

    def run_job(self, job):
        """The result of a job."""
        return self.space.run(job).value


class Arrays(OnDevice):
    """Arrays of numpy."""

    def test_elements_of_every_type_are_added_up(self):
        for kind in ("uint32", "uint64", "int64", "float32", "float64"):
            with self.subTest(kind):
                numbers = random(1).integers(0, 1000, 100_000).astype(kind)
                if kind == "int64":
                    numbers -= 500
                self.assertEqual(self.run_job(work.sum(numbers)), numbers.sum(dtype="float64"))
                least = self.run_job(work.min(numbers))
                self.assertEqual((least.value, least.index), (numbers.min(), numbers.argmin()))
                most = self.run_job(work.max(numbers))
                self.assertEqual((most.value, most.index), (numbers.max(), numbers.argmax()))

    def test_vectors_are_multiplied_and_added(self):
        for kind in ("float32", "float64"):
            x, y = (random(seed).random(10_000).astype(kind) for seed in (2, 3))
            wanted = numpy.dot(x.astype("float64"), y.astype("float64"))
            numpy.testing.assert_allclose(self.run_job(work.dot(x, y)), wanted, rtol=1e-6)
            wanted = 2.5 * x + y
            self.run_job(work.axpy(2.5, x, y))
            numpy.testing.assert_allclose(y, wanted, rtol=1e-6)

    def test_a_matrix_may_be_a_part_of_a_larger_one(self):
        whole = random(4).random((64, 96), dtype="float32")
        before = whole.copy()
        a, b = whole[:32, :24], random(5).random((24, 16), dtype="float32")
        c = whole[32:, 80:]
        self.run_job(work.gemm(a, b, c))
        numpy.testing.assert_allclose(c, before[:32, :24] @ b, rtol=1e-5)
        # All around it is as it was.
        whole[32:, 80:] = before[32:, 80:]
        numpy.testing.assert_array_equal(whole, before)

    def test_numbers_are_sorted_where_they_are(self):
        numbers = random(6).integers(0, 1 << 63, 50_000, dtype="uint64")
        wanted = numpy.sort(numbers)
        self.run_job(work.sort(numbers, numpy.empty_like(numbers)))
        numpy.testing.assert_array_equal(numbers, wanted)

    def test_bytes_are_counted(self):
        data = random(7).integers(0, 256, 100_000, dtype="uint8")
        counters = numpy.zeros(256, dtype="uint64")
        self.run_job(work.histogram(data, counters))
        numpy.testing.assert_array_equal(counters, numpy.bincount(data, minlength=256))

    def test_elements_are_picked_and_put_by_an_index(self):
        table = random(8).random(1000)
        index = random(9).integers(0, 1000, 500, dtype="uint64")
        picked = numpy.empty(500)
        self.run_job(work.gather(table, index, picked))
        numpy.testing.assert_array_equal(picked, table[index])
        order = random(10).permutation(1000).astype("uint64")
        put = numpy.zeros(1000)
        self.run_job(work.scatter(table, order, put))
        numpy.testing.assert_array_equal(put[order], table)

    def test_a_search_finds_the_distances_in_a_graph(self):
        # 0 → 1 → 2, and 3 alone.
        offsets = numpy.array([0, 1, 2, 2, 2], dtype="uint64")
        edges = numpy.array([1, 2], dtype="uint32")
        levels = numpy.empty(4, dtype="uint32")
        reach = self.run_job(work.bfs(offsets, edges, 0, levels, numpy.empty(4, dtype="uint32")))
        self.assertEqual((reach.vertices, reach.depth), (3, 2))
        self.assertEqual(levels.tolist(), [0, 1, 2, 0xFFFF_FFFF])

    def test_an_array_moves_to_the_device_and_comes_back_when_it_is_used(self):
        # A mapping of its own, which begins at a page.
        memory = mmap.mmap(-1, 1 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        numbers = numpy.frombuffer(memory, dtype="uint64")
        numbers[:] = numpy.arange(len(numbers))
        moved = self.space.migrate(numbers)
        self.assertEqual(moved.moved, (1 << 20) // PAGE)
        self.assertEqual(places(self.space, numbers), {hmm.Place.DEVICE})
        outcome = self.space.run(work.sum(numbers))
        self.assertEqual(outcome.value, sum(range(len(numbers))))
        self.assertEqual(outcome.usage.device_bytes, 1 << 20)
        self.assertEqual(int(numbers.sum()), outcome.value)
        self.assertEqual(places(self.space, numbers), {hmm.Place.SYSTEM})

    def test_what_the_device_cannot_use_is_refused_before_anything_runs(self):
        numbers = numpy.arange(100, dtype="uint64")
        with self.assertRaisesRegex(ValueError, "one after the other"):
            work.sum(numbers[::2])
        with self.assertRaisesRegex(TypeError, "not for the device"):
            work.sum(numbers.astype("complex128"))
        numbers.flags.writeable = False
        with self.assertRaisesRegex(ValueError, "read-only"):
            work.fill(numbers, 0)
        self.assertEqual(self.run_job(work.sum(numbers)), 4950)


class Buffers(OnDevice):
    """Other objects with a buffer."""

    def test_every_kind_of_buffer_is_worked_on_where_it_is(self):
        size = 10 * PAGE
        buffers = {
            "bytearray": bytearray(size),
            "memoryview": memoryview(bytearray(2 * size))[PAGE : PAGE + size],
            "array": array.array("Q", bytes(size)),
            "ctypes": (ctypes.c_uint8 * size)(),
            "mmap": mmap.mmap(-1, size),
            "numpy": numpy.zeros(size, dtype="uint8"),
        }
        for name, buffer in buffers.items():
            with self.subTest(name):
                self.run_job(work.fill(buffer, 0x0807_0605_0403_0201))
                self.assertEqual(bytes(buffer), bytes(range(1, 9)) * (size // 8))
                other = bytearray(size)
                self.run_job(work.copy(buffer, other))
                self.assertIsNone(self.run_job(work.compare(buffer, other)))
                other[1234] += 1
                self.assertEqual(self.run_job(work.compare(buffer, other)), 1234)

    def test_bytes_are_read_and_never_written(self):
        self.assertEqual(self.run_job(work.checksum(b"123456789")), 0xE306_9283)
        with self.assertRaisesRegex(ValueError, "read-only"):
            work.fill(b"12345678", 0)

    def test_a_buffer_cannot_be_resized_while_a_job_works_on_it(self):
        counter = bytearray(8)
        view = memoryview(counter).cast("Q")
        job = self.space.submit(work.atomic_add(view, 1, repeat=1 << 60))
        view.release()
        with self.assertRaises(BufferError):
            counter.extend(b"more")
        has_begun = False
        while not has_begun:
            # On a busy host the job begins late. It must not end.
            with self.assertRaises(TimeoutError):
                job.wait(timeout=0.01)
            has_begun = any(counter)
        job.cancel()
        with self.assertRaises(hmm.JobError) as caught:
            job.wait()
        self.assertEqual(caught.exception.status, hmm.Status.CANCELLED)
        self.assertGreater(int.from_bytes(counter, "little"), 0)
        del job, caught
        gc.collect()
        counter.extend(b"more")


class Contexts(unittest.TestCase):
    """Where a space begins and ends."""

    def test_the_end_of_a_block_ends_its_jobs_and_closes_the_device(self):
        counter = array.array("Q", [0])
        with hmm.Device("/dev/hmm0").bind() as space:
            space.submit(work.atomic_add(counter, 1, repeat=1 << 60))
        reached = counter[0]
        with self.assertRaisesRegex(ValueError, "closed"):
            space.run(work.sum(counter))
        counter.append(1)
        self.assertEqual(counter[0], reached, "the job has ended")

    def test_an_exception_leaves_the_block_and_the_device(self):
        with self.assertRaises(ZeroDivisionError):
            with hmm.Device("/dev/hmm0").bind() as space:
                space.submit(work.atomic_add(array.array("Q", [0]), 1, repeat=1 << 60))
                raise ZeroDivisionError
        with hmm.Device("/dev/hmm0").bind() as space:
            self.assertEqual(space.run(work.sum(array.array("Q", range(10)))).value, 45)

    def test_failures_say_what_failed(self):
        with self.assertRaises(hmm.CallError) as caught:
            hmm.Device("/dev/hmm-that-is-not-there")
        self.assertEqual(caught.exception.errno, errno.ENOENT)
        with hmm.Device("/dev/hmm0").bind() as space:
            with self.assertRaises(hmm.JobError) as caught:
                space.run(work.list_walk(PAGE, next_offset=0, value_offset=8))
        error = caught.exception
        self.assertEqual((error.status, error.address), (hmm.Status.FAULT, PAGE))
        self.assertEqual(error.access, {"read"})

    def test_threads_share_a_space(self):
        with hmm.Device("/dev/hmm0").bind() as space:
            counter = numpy.zeros(1, dtype="uint64")

            def add():
                for _ in range(20):
                    space.run(work.atomic_add(counter, 1, repeat=100))

            threads = [threading.Thread(target=add) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            self.assertEqual(counter[0], 4 * 20 * 100)

    def test_the_first_of_several_jobs_is_found(self):
        with hmm.Device("/dev/hmm0").bind() as space:
            counter, data = array.array("Q", [0]), array.array("Q", range(1000))
            long = space.submit(work.atomic_add(counter, 1, repeat=1 << 60))
            short = space.submit(work.sum(data))
            self.assertIs(space.wait_any([long, short]), short)
            self.assertEqual(short.wait().value, 499_500)
            self.assertIsNone(space.wait_any([long], timeout=0.01))
            long.cancel()
            self.assertIs(space.wait_any([long]), long)


if __name__ == "__main__":
    unittest.main()
