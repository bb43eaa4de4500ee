//! Ranges of a job's addresses and the progress through them, with checked arithmetic.
//!
//! This module knows nothing of the contents of a range.

use super::step::{Fault, Memory};
use crate::device::mmu::ADDRESS_BITS;
use virtio_hmm_spec::wire::command::Status;

/// The most that a step announces with [`Memory::expect`]: a larger fault would occupy the driver
/// with pages that the job may never reach.
const EXPECTED_BYTES: u64 = 64 << 20;

/// A range of addresses that a process can have. {dev-operation-bounds}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    address: u64,
    bytes: u64,
}

impl Range {
    /// `count` elements of `size` bytes from `address` on.
    ///
    /// # Errors
    ///
    /// [`Status::BadArgument`] when no address space holds that many bytes, [`Status::BadAddress`]
    /// when the range goes beyond the last address, with or without a wrap.
    pub(super) fn new(address: u64, count: u64, size: u64) -> Result<Self, Status> {
        let bytes = count.checked_mul(size).ok_or(Status::BadArgument)?;
        let lies_within = |end: u64| end <= 1 << ADDRESS_BITS;
        if bytes > 0 && !address.checked_add(bytes).is_some_and(lies_within) {
            return Err(Status::BadAddress);
        }
        Ok(Self { address, bytes })
    }

    /// The address that lies `offset` bytes into the range.
    ///
    /// The offset must be less than the size of the range if the address is used.
    pub(super) fn at(self, offset: u64) -> u64 {
        debug_assert!(offset <= self.bytes);
        self.address.wrapping_add(offset)
    }

    /// Whether the ranges share an address.
    pub(super) fn overlaps(self, other: Self) -> bool {
        let reaches = |from: Self, to: Self| {
            to.address
                .checked_sub(from.address)
                .is_some_and(|offset| offset < from.bytes)
        };
        self.bytes > 0 && other.bytes > 0 && (reaches(self, other) || reaches(other, self))
    }

    /// Loads one of the four-byte elements of the range.
    ///
    /// Eight bytes are loaded faster than four are copied, so the element is loaded together with a
    /// neighbour if it has one.
    pub(super) fn load_u32(self, memory: &mut impl Memory, index: u64) -> Result<u32, Fault> {
        let offset = index * 4;
        let mut element = [0; 4];
        if offset | 7 < self.bytes {
            let pair = memory.load(self.at(offset & !7))?.to_le_bytes();
            let half = if offset & 4 == 0 {
                &pair[..4]
            } else {
                &pair[4..]
            };
            element.copy_from_slice(half);
        } else {
            memory.read(self.at(offset), &mut element)?;
        }
        Ok(u32::from_le_bytes(element))
    }

    /// Announces the range from `offset` on.
    pub(super) fn expect_from(self, memory: &mut impl Memory, offset: u64, access: u32) {
        let rest = (self.bytes - offset).min(EXPECTED_BYTES);
        memory.expect(self.at(offset), rest, access);
    }

    /// Announces the range before `end`, for operations that go backwards.
    pub(super) fn expect_before(self, memory: &mut impl Memory, end: u64, access: u32) {
        let rest = end.min(EXPECTED_BYTES);
        memory.expect(self.at(end - rest), rest, access);
    }
}

/// The progress of an operation through its elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    done: u64,
    total: u64,
}

impl Progress {
    pub(super) fn new(total: u64) -> Self {
        Self { done: 0, total }
    }

    /// The number of elements done, which is also the index of the next one.
    pub(super) fn done(self) -> u64 {
        self.done
    }

    pub(super) fn total(self) -> u64 {
        self.total
    }

    pub(super) fn rest(self) -> u64 {
        self.total - self.done
    }

    pub(super) fn finished(self) -> bool {
        self.done == self.total
    }

    /// The number of elements to take next, at most `most`.
    pub(super) fn next(self, most: usize) -> usize {
        usize::try_from(self.rest()).map_or(most, |rest| rest.min(most))
    }

    /// Records that `count` more are done; at most [`Self::rest`].
    pub(super) fn advance(&mut self, count: usize) {
        self.done += count as u64;
        debug_assert!(self.done <= self.total);
    }
}
