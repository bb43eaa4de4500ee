#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
"""A tour of the device in Python: an array and a list on it, and a job that is cancelled.

docs/languages.md says how to run it. A numpy array does as well as one of the module array.
"""

import array
import ctypes
import sys

import hmm
from hmm import work

COUNT = 1 << 20
NODES = 1000


class Node(ctypes.Structure):
    """A node of a list, as C would write it."""


Node._fields_ = [("next", ctypes.POINTER(Node)), ("value", ctypes.c_uint64)]


def pages_on_device(space, buffer):
    """How many pages of a buffer are on the device."""
    return sum(page.place is hmm.Place.DEVICE for page in space.residency(buffer))


def tour_of_array(space):
    """An array moves to the device, and is added up there."""
    numbers = array.array("Q", range(COUNT))
    pages = len(space.residency(numbers))
    migration = space.migrate(numbers)
    print(f"moved: {migration.moved} of {pages} pages")
    print(f"sum: {space.run(work.sum(numbers)).value}")
    print(f"on the device: {pages_on_device(space, numbers)}")
    # The CPU needs them now, and they come back by themselves.
    print(f"sum by the CPU: {sum(numbers)}")
    print(f"on the device: {pages_on_device(space, numbers)}")


def tour_of_list(space):
    """The device follows the program's own pointers."""
    nodes = (Node * NODES)()
    for index, node in enumerate(nodes):
        node.value = index
        if index + 1 < NODES:
            node.next = ctypes.pointer(nodes[index + 1])
    walk = work.list_walk(
        nodes,
        next_offset=Node.next.offset,
        value_offset=Node.value.offset,
        key=7,
        limit=NODES,
    )
    found = space.run(walk).value
    place = (found.found - ctypes.addressof(nodes)) // ctypes.sizeof(Node)
    print(f"list: {found.nodes} nodes, sum {found.sum}, 7 is in node {place}")


def tour_of_cancel(space):
    """A job that would run for years is ended early."""
    counter = array.array("Q", [0])
    job = space.submit(work.atomic_add(counter, 1, repeat=1 << 60))
    try:
        job.wait(timeout=0.01)
    except TimeoutError:
        job.cancel()
    else:
        sys.exit("tour: the job should still run")
    try:
        job.wait()
    except hmm.JobError as error:
        print(f"cancelled: {error}")


def main():
    """Opens the device, and shows each part."""
    path = sys.argv[1] if len(sys.argv) > 1 else "/dev/hmm0"
    with hmm.Device(path).bind() as space:
        print(f"device: {space.info().device_memory >> 20} MiB")
        tour_of_array(space)
        tour_of_list(space)
        tour_of_cancel(space)


if __name__ == "__main__":
    try:
        main()
    except hmm.Error as error:
        sys.exit(f"tour: {error}")
