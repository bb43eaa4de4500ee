"""Memory of Python's objects."""

import array
import ctypes
import gc
import mmap
import unittest

from hmm._buffers import Memory
from hmm._uapi import Element


class MemoryTest(unittest.TestCase):
    def test_the_address_is_that_of_the_object_and_nothing_is_copied(self):
        numbers = array.array("Q", [1, 2, 3])
        memory = Memory(numbers, writable=True)
        self.assertEqual(memory.address, numbers.buffer_info()[0])
        self.assertEqual((memory.count, memory.bytes), (3, 24))
        ctypes.c_uint64.from_address(memory.address).value = 7
        self.assertEqual(numbers[0], 7)

    def test_each_kind_of_object_with_a_buffer_is_good(self):
        values = (ctypes.c_uint32 * 4)(1, 2, 3, 4)
        self.assertEqual(Memory(values, writable=True).address, ctypes.addressof(values))
        with mmap.mmap(-1, 8192) as pages:
            memory = Memory(pages, writable=True)
            self.assertEqual((memory.address % 4096, memory.bytes), (0, 8192))
            del memory
            gc.collect()
        text = b"read only"
        self.assertEqual(ctypes.string_at(Memory(text, writable=False).address, 4), b"read")

    def test_a_part_begins_where_the_part_begins(self):
        numbers = array.array("Q", range(8))
        part = Memory(memoryview(numbers)[2:5], writable=False)
        self.assertEqual(part.address, numbers.buffer_info()[0] + 16)
        self.assertEqual(part.count, 3)

    def test_memory_that_is_held_cannot_be_moved_or_freed(self):
        numbers = bytearray(16)
        memory = Memory(numbers, writable=True)
        with self.assertRaises(BufferError):
            numbers.extend(b"more")
        del memory
        gc.collect()
        numbers.extend(b"more")

    def test_what_cannot_be_written_or_has_gaps_is_refused(self):
        with self.assertRaisesRegex(ValueError, "read-only"):
            Memory(b"text", writable=True)
        with self.assertRaisesRegex(ValueError, "one after the other"):
            Memory(memoryview(bytearray(8))[::2], writable=False)
        with self.assertRaises(TypeError):
            Memory([1, 2, 3], writable=False)
        with self.assertRaises(TypeError):
            Memory(4096, writable=False)

    def test_rows_may_lie_apart_where_the_operation_knows_strides(self):
        rows = memoryview(bytearray(4 * 6 * 4)).cast("f", [4, 6])
        whole = Memory(rows, writable=True, rows=True)
        self.assertEqual((whole.view.shape, whole.view.strides), ((4, 6), (24, 4)))

    def test_the_type_of_elements_is_that_of_the_buffer(self):
        expected = {
            "I": Element.U32,
            "Q": Element.U64,
            "L": Element.U64,
            "q": Element.I64,
            "l": Element.I64,
            "f": Element.F32,
            "d": Element.F64,
        }
        for code, element in expected.items():
            memory = Memory(array.array(code, [0]), writable=False)
            self.assertEqual(memory.element, element, code)
        for code in "bBhHi":
            with self.assertRaisesRegex(TypeError, "not for the device"):
                _ = Memory(array.array(code, [0]), writable=False).element
        swapped = (ctypes.c_uint64.__ctype_be__ * 1)()
        with self.assertRaises(TypeError):
            _ = Memory(swapped, writable=False).element
