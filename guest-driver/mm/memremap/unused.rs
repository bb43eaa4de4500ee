// SPDX-License-Identifier: GPL-2.0

//! Frames of device memory that are not in use, as values: each exists once.
//!
//! Does not know what is made of them, nor which of them are used next ([`crate::mm::frames`]).
//!
//! C header: [`include/linux/memremap.h`](srctree/include/linux/memremap.h)

use crate::mm::pages_of;
use kernel::sync::atomic::{Atomic, Relaxed};

/// Identifies the device memory that frames belong to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryId(u64);

impl MemoryId {
    /// An identifier that no other memory has.
    pub(crate) fn new() -> Self {
        static NEXT: Atomic<u64> = Atomic::new(0);
        Self(NEXT.fetch_add(1, Relaxed))
    }
}

/// A naturally aligned block of 2 to the power of `order` frames of device memory, beginning with
/// `first`, that is not in use.
///
/// # Invariants
///
/// There is no other such value, and no folio, with any of these frames of this memory.
pub(crate) struct UnusedFrames {
    memory: MemoryId,
    first: u64,
    order: u32,
}

impl UnusedFrames {
    /// # Safety
    ///
    /// These frames of the memory must not be in use. They must be accounted for as in use until
    /// the value is dropped, or until [`DevPagemapOps::folio_free`] is called for them.
    ///
    /// [`DevPagemapOps::folio_free`]: super::DevPagemapOps::folio_free
    pub(crate) unsafe fn new(memory: MemoryId, first: u64, order: u32) -> Self {
        // INVARIANT: The caller promises that it is so.
        Self {
            memory,
            first,
            order,
        }
    }

    /// Creates a device memory of `runs` runs of 2 to the power of `order` frames. Returns its
    /// identifier and the runs; no runs if there cannot be so many. The values can only be moved
    /// and split, so lists of them are enough to manage the memory.
    ///
    /// # Examples
    ///
    /// ```
    /// use kernel::mm::memremap::UnusedFrames;
    ///
    /// let (_, mut runs) = UnusedFrames::of_new_memory(2, 1);
    /// let first = runs.next().ok_or(EINVAL)?;
    /// let second = runs.next().ok_or(EINVAL)?;
    /// assert!(runs.next().is_none());
    /// assert_eq!((first.first(), first.order()), (0, 1));
    ///
    /// let mut frames = second.split();
    /// assert_eq!(frames.next().map(|frame| (frame.first(), frame.order())), Some((2, 0)));
    /// assert_eq!(frames.next().map(|frame| (frame.first(), frame.order())), Some((3, 0)));
    /// assert!(frames.next().is_none());
    /// # Ok::<(), Error>(())
    /// ```
    #[allow(dead_code)] // The sample alone needs it.
    pub(crate) fn of_new_memory(runs: u64, order: u32) -> (MemoryId, impl Iterator<Item = Self>) {
        let memory = MemoryId::new();
        let frames = pages_of(order) as u64;
        let runs = runs.checked_mul(frames).map_or(0, |_| runs);
        // INVARIANT: No other memory has this identity, and each of its frames comes once: the
        // product does not wrap.
        let all = (0..runs).map(move |run| Self {
            memory,
            first: run.wrapping_mul(frames),
            order,
        });
        (memory, all)
    }

    /// The same frames, one by one.
    #[allow(dead_code)] // The sample alone needs it.
    pub(crate) fn split(self) -> impl Iterator<Item = Self> {
        let Self {
            memory,
            first,
            order,
        } = self;
        // INVARIANT: `self` is gone, and each of its frames comes once.
        (0..pages_of(order) as u64).map(move |index| Self {
            memory,
            first: first.wrapping_add(index),
            order: 0,
        })
    }

    /// The memory that they belong to.
    pub(super) fn memory(&self) -> MemoryId {
        self.memory
    }

    /// The first frame.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// log2 of the number of frames.
    pub(crate) fn order(&self) -> u32 {
        self.order
    }
}
