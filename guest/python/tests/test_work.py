"""Work is what the device expects."""

import array
import ctypes
import struct
import unittest

from hmm import work
from hmm._uapi import ARGUMENTS, Element, Operation


def bits(value):
    return struct.unpack("<Q", struct.pack("<d", value))[0]


class WorkTest(unittest.TestCase):
    def test_buffers_become_addresses_and_lengths_in_the_operations_own_units(self):
        numbers = array.array("Q", [1, 2, 3])
        address = numbers.buffer_info()[0]
        self.assertEqual(work.sum(numbers).arguments, (address, 3, Element.U64))
        self.assertEqual(work.checksum(numbers).arguments, (address, 24))

    def test_sorting_writes_to_the_data_and_the_scratch_room_not_the_other_way_round(self):
        data, scratch = array.array("Q", [3, 1]), array.array("Q", [0] * 4)
        sort = work.sort(data, scratch)
        self.assertEqual(
            sort.arguments, (data.buffer_info()[0], 2, scratch.buffer_info()[0])
        )
        with self.assertRaisesRegex(ValueError, "smaller"):
            work.sort(scratch, data)

    def test_a_result_has_the_type_that_the_elements_add_up_to(self):
        of = lambda code, raw: work.sum(array.array(code, [0])).decode((raw, 0, 0, 0))
        self.assertEqual(of("I", 1 << 40), 1 << 40)
        self.assertEqual(of("q", (1 << 64) - 1), -1)
        self.assertEqual(of("f", bits(1.5)), 1.5)
        self.assertEqual(of("d", bits(-2.5)), -2.5)

    def test_an_index_at_the_end_means_that_there_is_none(self):
        two = array.array("f", [1.0, 2.0])
        raw = struct.unpack("<I", struct.pack("<f", 2.0))[0]
        self.assertEqual(work.max(two).decode((raw, 1, 0, 0)), work.Extreme(2.0, 1))
        self.assertIsNone(work.max(two).decode((0, 2, 0, 0)))
        self.assertIsNone(work.compare(two, two).decode((8, 0, 0, 0)))
        self.assertEqual(work.compare(two, two).decode((7, 0, 0, 0)), 7)

    def test_a_null_pointer_was_not_found(self):
        walk = work.list_walk(0, next_offset=0, value_offset=8, key=5)
        self.assertEqual(walk.decode((0, 0, 0, 0)), work.ListSummary(0, 0, None))
        self.assertEqual(walk.decode((1, 5, 64, 0)).found, 64)
        self.assertEqual(walk.arguments, (0, 0, 8, 5, (1 << 64) - 1))

    def test_a_structure_of_ctypes_is_a_node(self):
        class Node(ctypes.Structure):
            _fields_ = [("next", ctypes.c_void_p), ("value", ctypes.c_uint64)]

        node = Node(None, 5)
        walk = work.list_walk(
            node, next_offset=Node.next.offset, value_offset=Node.value.offset
        )
        self.assertEqual(walk.arguments[:3], (ctypes.addressof(node), 0, 8))
        self.assertIn(node, walk.keep)

    def test_floating_point_arguments_are_bits(self):
        x, y = array.array("d", [1.0]), array.array("d", [2.0])
        axpy = work.axpy(0.5, x, y)
        self.assertEqual(axpy.arguments[4], bits(0.5))
        matrix = memoryview(bytearray(16)).cast("f", [2, 2])
        gemm = work.gemm(matrix, matrix, memoryview(bytearray(16)).cast("f", [2, 2]), alpha=2.0)
        self.assertEqual(gemm.arguments[3:9], (2, 2, 2, 2, 2, 2))
        self.assertEqual(gemm.arguments[9], struct.unpack("<I", struct.pack("<f", 2.0))[0])

    def test_buffers_that_do_not_fit_together_never_become_a_job(self):
        short, long = array.array("d", [1.0]), array.array("d", [1.0, 2.0])
        words = array.array("Q", [1])
        with self.assertRaisesRegex(ValueError, "different lengths: 1, 2"):
            work.dot(short, long)
        with self.assertRaisesRegex(TypeError, "F32 or F64"):
            work.dot(words, words)
        with self.assertRaisesRegex(TypeError, "F64"):
            work.axpy(1.0, short, words)
        with self.assertRaises(ValueError):
            work.histogram(b"text", words)
        with self.assertRaises(ValueError):
            work.fill(bytearray(8), -1)
        with self.assertRaisesRegex(ValueError, "read-only"):
            work.fill(bytes(8), 1)

    def test_every_operation_has_a_function(self):
        made = set()
        words, others = array.array("Q", [0]), array.array("Q", [0])
        counters, vertices = array.array("Q", [0] * 256), array.array("I", [0])
        doubles, more = array.array("d", [0.0]), array.array("d", [0.0])
        matrices = [memoryview(bytearray(4)).cast("f", [1, 1]) for _ in range(3)]
        tree = {"left_offset": 0, "right_offset": 8}
        for each in (
            work.fill(words, 1),
            work.copy(words, others),
            work.compare(words, others),
            work.checksum(words),
            work.sum(words),
            work.min(words),
            work.max(words),
            work.dot(doubles, more),
            work.axpy(1.0, doubles, more),
            work.gemm(*matrices),
            work.sort(words, others),
            work.histogram(words, counters),
            work.gather(words, words, others),
            work.scatter(words, words, others),
            work.list_walk(0, next_offset=0, value_offset=8),
            work.tree_search(0, **tree, key_offset=16, key=1),
            work.tree_sum(0, **tree, value_offset=16),
            work.bfs(array.array("Q", [0, 0]), vertices, 0, array.array("I", [0]), vertices),
            work.atomic_add(words, 1),
            work.atomic_exchange(words, 1),
            work.atomic_compare_exchange(words, 1, 2),
        ):
            self.assertEqual(len(each.arguments), len(ARGUMENTS[each.operation]))
            made.add(each.operation)
        self.assertEqual(made, set(Operation))
