//! Ranges of a job's addresses and the way through them, with checked arithmetic.
//!
//! Knows nothing of what lies in a range.

use super::{Fault, Memory};
use virtio_hmm_spec::wire::command::Status;

/// The most that a step announces with [`Memory::expect`]: a fault that asked for more
/// would keep the driver busy with pages that a job may never come to.
const EXPECTED_BYTES: u64 = 64 << 20;

/// A range of addresses that does not wrap.
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
    /// [`Status::BadArgument`] when no address space has room for so many bytes,
    /// [`Status::BadAddress`] when the range goes beyond the last address.
    pub(super) fn new(address: u64, count: u64, size: u64) -> Result<Self, Status> {
        let bytes = count.checked_mul(size).ok_or(Status::BadArgument)?;
        if bytes > 0 && address.checked_add(bytes - 1).is_none() {
            return Err(Status::BadAddress);
        }
        Ok(Self { address, bytes })
    }

    /// The address that lies `offset` bytes into the range.
    ///
    /// The offset is less than the size of the range, or nothing is done with it.
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

    /// Loads one of the elements of four bytes that the range consists of.
    ///
    /// Eight bytes are loaded faster than four are copied, so its neighbour comes along
    /// if it has one.
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

    /// Announces what lies from `offset` on.
    pub(super) fn expect_from(self, memory: &mut impl Memory, offset: u64, access: u32) {
        let rest = (self.bytes - offset).min(EXPECTED_BYTES);
        memory.expect(self.at(offset), rest, access);
    }

    /// Announces what lies before `end`, for those who come from behind.
    pub(super) fn expect_before(self, memory: &mut impl Memory, end: u64, access: u32) {
        let rest = end.min(EXPECTED_BYTES);
        memory.expect(self.at(end - rest), rest, access);
    }
}

/// How far an operation has come through its elements.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    done: u64,
    total: u64,
}

impl Progress {
    pub(super) fn new(total: u64) -> Self {
        Self { done: 0, total }
    }

    /// How many are done; so it is the index of the next one.
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

    /// How many come next, if not more than `most` are taken at once.
    pub(super) fn next(self, most: usize) -> usize {
        usize::try_from(self.rest()).map_or(most, |rest| rest.min(most))
    }

    /// Notes that `count` more are done; not more than [`Self::rest`].
    pub(super) fn advance(&mut self, count: usize) {
        self.done += count as u64;
        debug_assert!(self.done <= self.total);
    }
}
