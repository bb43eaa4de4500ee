//! Pages: ranges of them, where they are, and the result of a migration.
//!
//! Only arithmetic and names: nothing here calls the driver.

use std::ops::Range;

use virtio_hmm_spec::uapi::page_state;

/// The size of the guest's pages in bytes.
pub fn page_size() -> usize {
    rustix::param::page_size()
}

/// A range of whole pages of the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRange {
    address: u64,
    pages: usize,
}

impl PageRange {
    /// The smallest range that holds all bytes of a slice.
    ///
    /// Its first and last page may also hold other data, which is harmless: moving a page does not
    /// change its contents.
    pub fn covering<T>(slice: &[T]) -> Self {
        let start = slice.as_ptr().addr();
        Self::around(start..start + size_of_val(slice))
    }

    /// The smallest range that holds all these addresses.
    pub fn around(addresses: Range<usize>) -> Self {
        let mask = page_size() - 1;
        let start = addresses.start & !mask;
        let bytes = addresses.end.saturating_sub(start);
        // An empty range has no pages, wherever it begins.
        let pages = if addresses.is_empty() {
            0
        } else {
            bytes.div_ceil(page_size())
        };
        Self {
            address: start as u64,
            pages,
        }
    }

    /// The address of the first page.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The number of pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// The number of bytes.
    pub fn bytes(&self) -> u64 {
        (self.pages * page_size()) as u64
    }
}

/// The result of moving a range, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Migration {
    /// Moved to the destination.
    pub moved: u64,
    /// Stayed: there already, not mapped, or not able to move.
    pub skipped: u64,
    /// Stayed because the destination has no memory for them; part of `skipped`.
    pub no_memory: u64,
}

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    /// Nowhere yet.
    None,
    /// In the guest's memory.
    System,
    /// In the memory of this device.
    Device,
    /// Where no device can reach it.
    Other,
}

/// The state of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageState(u8);

impl PageState {
    /// The state that a combination of [`page_state`] bits stands for.
    pub fn from_raw(raw: u8) -> Self {
        Self(raw)
    }

    /// The combination of [`page_state`] bits.
    pub fn raw(self) -> u8 {
        self.0
    }

    /// The place of its contents.
    pub fn place(self) -> Place {
        match self.0 & page_state::PLACE {
            page_state::NONE => Place::None,
            page_state::SYSTEM => Place::System,
            page_state::DEVICE => Place::Device,
            _ => Place::Other,
        }
    }

    /// Whether the process may write to it without a fault.
    pub fn is_writable(self) -> bool {
        self.0 & page_state::WRITABLE != 0
    }

    /// Whether it is part of a huge page.
    pub fn is_large(self) -> bool {
        self.0 & page_state::HUGE != 0
    }

    /// Whether the device has it mapped.
    pub fn is_mapped(self) -> bool {
        self.0 & page_state::MAPPED != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_grows_to_whole_pages_on_both_sides() {
        let page = page_size();
        let range = PageRange::around(page + 1..3 * page + 1);
        assert_eq!((range.address(), range.pages()), (page as u64, 3));
        assert_eq!(range.bytes(), 3 * page as u64);
        let exact = PageRange::around(page..2 * page);
        assert_eq!((exact.address(), exact.pages()), (page as u64, 1));
    }

    #[test]
    fn an_empty_range_has_no_pages_wherever_it_begins() {
        let page = page_size();
        assert_eq!(PageRange::around(page + 5..page + 5).pages(), 0);
        assert_eq!(PageRange::covering::<u64>(&[]).pages(), 0);
    }

    #[test]
    fn a_state_tells_its_place_and_its_flags_apart() {
        let state = PageState::from_raw(page_state::DEVICE | page_state::MAPPED);
        assert_eq!(state.place(), Place::Device);
        assert!(state.is_mapped() && !state.is_writable() && !state.is_large());
        assert_eq!(PageState::from_raw(page_state::OTHER).place(), Place::Other);
        assert_eq!(PageState::from_raw(0).place(), Place::None);
    }
}
