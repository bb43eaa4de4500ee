//! Runs of pages that lie within the address space.

use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::{PAGE_BYTES, PAGE_SHIFT};

/// Width of a virtual address in bits: five levels of nine bits and a page.
pub const ADDRESS_BITS: u32 = 57;

/// The pages of an address space.
const PAGES: u64 = 1 << (ADDRESS_BITS - PAGE_SHIFT);

/// Pages from `start` up to, but not including, `end`.
///
/// Both are page numbers within the address space, and `start` is below `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    start: u64,
    end: u64,
}

impl PageRange {
    /// The whole address space.
    pub const ALL: Self = Self {
        start: 0,
        end: PAGES,
    };

    /// The run of `pages` pages at an address.
    ///
    /// # Errors
    ///
    /// [`Status::Malformed`] when it is empty, [`Status::BadAddress`] when it is not
    /// aligned to a page or does not lie within the address space.
    pub fn new(address: u64, pages: u64) -> Result<Self, Status> {
        if pages == 0 {
            return Err(Status::Malformed);
        }
        let start = address >> PAGE_SHIFT;
        let end = start
            .checked_add(pages)
            .filter(|end| *end <= PAGES)
            .ok_or(Status::BadAddress)?;
        if address % PAGE_BYTES != 0 {
            return Err(Status::BadAddress);
        }
        Ok(Self { start, end })
    }

    /// The first page.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// The page after the last one.
    pub fn end(&self) -> u64 {
        self.end
    }

    /// The number of pages.
    pub fn pages(&self) -> u64 {
        self.end - self.start
    }

    /// Whether the range contains a page.
    pub fn contains(&self, page: u64) -> bool {
        (self.start..self.end).contains(&page)
    }

    /// The rest of the range from a page on.
    pub(super) fn from(&self, page: u64) -> Option<Self> {
        let start = self.start.max(page);
        (start < self.end).then_some(Self { start, ..*self })
    }

    /// The pages of this range among the `1 << shift` that begin at `base`.
    pub(super) fn within(&self, base: u64, shift: u32) -> Option<Self> {
        let start = self.start.max(base);
        let end = self.end.min(base + (1 << shift));
        (start < end).then_some(Self { start, end })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_lies_within_the_address_space() {
        assert!(PageRange::new(0, PAGES).is_ok());
        assert!(PageRange::new((PAGES - 1) << PAGE_SHIFT, 1).is_ok());
        assert_eq!(PageRange::new(0, 0), Err(Status::Malformed));
        assert_eq!(PageRange::new(0, PAGES + 1), Err(Status::BadAddress));
        assert_eq!(
            PageRange::new(PAGES << PAGE_SHIFT, 1),
            Err(Status::BadAddress)
        );
        assert_eq!(PageRange::new(1, 1), Err(Status::BadAddress));
        assert_eq!(
            PageRange::new(PAGE_BYTES, u64::MAX),
            Err(Status::BadAddress)
        );
    }
}
