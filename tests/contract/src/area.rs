//! Memory that the CPU, the device and other processes share, and its contents.
//!
//! An [`Area`] is a mapping of its own. Nothing of it is ever a Rust reference: its bytes are read
//! and written as memory that others change. The contents of a page are named by a [`Tag`]: each
//! word is made of the tag and of the page's number, so that neither a stale nor a misplaced page
//! goes unnoticed.
//!
//! It knows nothing of the device.

use std::ffi::c_int;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::atomic::AtomicU64;

use anyhow::{bail, ensure, Context, Result};
use hmm::PageRange;

use crate::sys;

/// The size of a page.
pub(crate) const PAGE: usize = 4096;
/// The size of a huge page.
pub(crate) const LARGE: usize = 2 << 20;
/// How many pages a huge page has.
pub(crate) const LARGE_PAGES: usize = LARGE / PAGE;
/// How many words a page has.
const WORDS: usize = PAGE / 8;

/// The contents of a page: see [`word`].
pub(crate) type Tag = u8;

/// Pages that were never written hold zeros.
pub(crate) const ZERO: Tag = 0;

/// The value of each word of a page with this number and this tag.
pub(crate) fn word(tag: Tag, page: usize) -> u64 {
    if tag == ZERO {
        return 0;
    }
    let mut word = u64::from(tag) << 56 ^ (page as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    // No byte of it is zero, so that a cleared byte always differs.
    word | 0x0101_0101_0101_0101
}

/// The words of the pages `pages` with this tag.
pub(crate) fn words(tag: Tag, pages: Range<usize>) -> Vec<u64> {
    pages
        .flat_map(|page| std::iter::repeat_n(word(tag, page), WORDS))
        .collect()
}

/// A mapping that belongs to this value.
///
/// Invariant: nothing that Rust knows of lies within `start..start + bytes`. A row may have
/// unmapped part of the mapping or forbidden its use. An access to such a part kills the row's
/// process by a signal, which its runner reports.
#[derive(Debug)]
pub(crate) struct Area {
    start: usize,
    bytes: usize,
    /// The number that its first page has in the contents.
    first: usize,
}

impl Area {
    /// A mapping with these properties, aligned to a huge page if it is at least as large.
    pub(crate) fn map(
        bytes: usize,
        protection: c_int,
        flags: c_int,
        file: Option<(BorrowedFd<'_>, i64)>,
    ) -> Result<Self> {
        // A range of addresses with room for alignment, then the mapping inside it.
        let room = bytes + LARGE;
        let reserve = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: without `MAP_FIXED`.
        let free = unsafe { sys::map(0, room, sys::NO_ACCESS, reserve, None) }
            .context("reserving addresses")?;
        let start = free.next_multiple_of(LARGE);
        // SAFETY: it replaces a part of the mapping that was made just now.
        let made = unsafe { sys::map(start, bytes, protection, flags | libc::MAP_FIXED, file) };
        if free < start {
            // SAFETY: what surrounds the new mapping is ours, and unused.
            unsafe { sys::unmap(free, start - free) }.context("giving addresses back")?;
        }
        let end = (start + bytes).next_multiple_of(PAGE);
        if end < free + room {
            // SAFETY: as above.
            unsafe { sys::unmap(end, free + room - end) }.context("giving addresses back")?;
        }
        Ok(Self {
            start: made.context("mapping memory")?,
            bytes,
            first: 0,
        })
    }

    /// Private memory that was never touched, in small pages.
    pub(crate) fn small(pages: usize) -> Result<Self> {
        let area = Self::anonymous(pages * PAGE)?;
        area.advise(0..pages, libc::MADV_NOHUGEPAGE)?;
        Ok(area)
    }

    /// Private memory that was never touched, in huge pages if the kernel has them.
    pub(crate) fn large(count: usize) -> Result<Self> {
        let area = Self::anonymous(count * LARGE)?;
        area.advise(0..area.pages(), libc::MADV_HUGEPAGE)
            .context("asking for huge pages")?;
        Ok(area)
    }

    fn anonymous(bytes: usize) -> Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        Self::map(bytes, sys::READ_WRITE, flags, None)
    }

    /// Private memory that was never touched, in small pages, without a reservation: it may exceed
    /// the machine's memory.
    pub(crate) fn unreserved(bytes: usize) -> Result<Self> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let area = Self::map(bytes, sys::READ_WRITE, flags, None)?;
        area.advise(area.all(), libc::MADV_NOHUGEPAGE)?;
        Ok(area)
    }

    /// Anonymous memory that is shared with children.
    pub(crate) fn shared(pages: usize) -> Result<Self> {
        let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        Self::map(pages * PAGE, sys::READ_WRITE, flags, None)
    }

    /// Memory of another owner that is only read; dropping this does not unmap it.
    pub(crate) fn foreign(start: usize, pages: usize) -> std::mem::ManuallyDrop<Self> {
        std::mem::ManuallyDrop::new(Self {
            start,
            bytes: pages * PAGE,
            first: 0,
        })
    }

    /// The address of a page.
    pub(crate) fn address(&self, page: usize) -> usize {
        self.start + page * PAGE
    }

    /// How many pages it has.
    pub(crate) fn pages(&self) -> usize {
        self.bytes / PAGE
    }

    /// All its pages.
    pub(crate) fn all(&self) -> Range<usize> {
        0..self.pages()
    }

    /// These pages, as the library names them.
    pub(crate) fn range(&self, pages: Range<usize>) -> PageRange {
        PageRange::around(self.address(pages.start)..self.address(pages.end))
    }

    /// The words that these pages hold with a tag.
    pub(crate) fn words(&self, pages: Range<usize>, tag: Tag) -> Vec<u64> {
        words(tag, self.first + pages.start..self.first + pages.end)
    }

    /// The word that a page holds with a tag.
    pub(crate) fn word(&self, page: usize, tag: Tag) -> u64 {
        word(tag, self.first + page)
    }

    fn pointer(&self, page: usize, index: usize) -> *mut u64 {
        assert!(page < self.pages() && index < WORDS, "inside of the area");
        std::ptr::with_exposed_provenance_mut(self.address(page) + index * 8)
    }

    /// Reads a word of a page.
    pub(crate) fn read_word(&self, page: usize, index: usize) -> u64 {
        // SAFETY: by the type's invariant it is no Rust object's; it lies in the area, aligned.
        // Others may write it meanwhile, so the access is volatile.
        unsafe { self.pointer(page, index).read_volatile() }
    }

    /// Writes a word of a page.
    pub(crate) fn write_word(&self, page: usize, index: usize, word: u64) {
        // SAFETY: as in `read_word`.
        unsafe { self.pointer(page, index).write_volatile(word) }
    }

    /// A word of a page as a counter that CPUs and devices change together.
    pub(crate) fn counter(&self, page: usize, index: usize) -> &AtomicU64 {
        // SAFETY: the word lies in the area, aligned, and is used by atomic accesses only
        // as long as the row uses it as a counter; the mapping lives as long as `self`.
        unsafe { AtomicU64::from_ptr(self.pointer(page, index)) }
    }

    /// The CPU writes whole pages.
    pub(crate) fn write(&self, pages: Range<usize>, tag: Tag) {
        for page in pages {
            let word = self.word(page, tag);
            for index in 0..WORDS {
                self.write_word(page, index, word);
            }
        }
    }

    /// The CPU reads whole pages.
    pub(crate) fn expect(&self, pages: Range<usize>, tag: Tag) -> Result<()> {
        for page in pages {
            let wanted = self.word(page, tag);
            for index in 0..WORDS {
                let found = self.read_word(page, index);
                if found != wanted {
                    bail!(
                        "the CPU reads {found:#x} at word {index} of page {page} \
                         instead of {wanted:#x} (tag {tag})"
                    );
                }
            }
        }
        Ok(())
    }

    /// Changes the protection of pages.
    pub(crate) fn protect(&self, pages: Range<usize>, protection: c_int) -> Result<()> {
        // SAFETY: by the type's invariant.
        unsafe { sys::protect(self.address(pages.start), pages.len() * PAGE, protection) }
            .context("mprotect")
    }

    /// Gives advice on pages.
    pub(crate) fn advise(&self, pages: Range<usize>, advice: c_int) -> Result<()> {
        self.try_advise(pages, advice)
            .with_context(|| format!("madvise {advice}"))
    }

    /// Like [`Self::advise`], but returns the kernel's error to a row that expects it.
    pub(crate) fn try_advise(&self, pages: Range<usize>, advice: c_int) -> std::io::Result<()> {
        // SAFETY: by the type's invariant.
        unsafe { sys::advise(self.address(pages.start), pages.len() * PAGE, advice) }
    }

    /// Unmaps pages.
    pub(crate) fn unmap(&self, pages: Range<usize>) -> Result<()> {
        // SAFETY: by the type's invariant.
        unsafe { sys::unmap(self.address(pages.start), pages.len() * PAGE) }.context("munmap")
    }

    /// Maps fresh private memory at the addresses of pages, whether or not they are mapped.
    pub(crate) fn renew(&self, pages: Range<usize>) -> Result<()> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
        let bytes = pages.len() * PAGE;
        let address = self.address(pages.start);
        // SAFETY: by the type's invariant nothing of Rust's is there.
        unsafe { sys::map(address, bytes, sys::READ_WRITE, flags, None) }.context("mmap")?;
        Ok(())
    }

    /// Moves pages to the addresses of other ones; they keep their contents.
    pub(crate) fn remap(&self, pages: Range<usize>, to: &Area, at: usize) -> Result<Area> {
        self.remap_with(pages, to, at, 0)
    }

    /// Like [`Self::remap`], with flags.
    pub(crate) fn remap_with(
        &self,
        pages: Range<usize>,
        to: &Area,
        at: usize,
        flags: c_int,
    ) -> Result<Area> {
        ensure!(at + pages.len() <= to.pages(), "it fits");
        let bytes = pages.len() * PAGE;
        let from = self.address(pages.start);
        // SAFETY: by the type's invariant nothing of Rust's is in either place.
        let start = unsafe { sys::remap(from, bytes, to.address(at), flags) }.context("mremap")?;
        Ok(Area {
            start,
            bytes,
            first: self.first + pages.start,
        })
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: by the type's invariant. A part that is unmapped already stays so: rows run in
        // one process each and make no other mappings there.
        let _ = unsafe { sys::unmap(self.start, self.bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_and_tags_are_told_apart_and_no_byte_looks_cleared() {
        let all: std::collections::BTreeSet<u64> = (1..=20)
            .flat_map(|tag| (0..600).map(move |page| word(tag, page)))
            .collect();
        assert_eq!(all.len(), 20 * 600);
        assert!(all.iter().all(|word| !word.to_ne_bytes().contains(&0)));
        assert_eq!(word(ZERO, 5), 0);
    }

    #[test]
    fn what_was_written_is_found_and_anything_else_is_told() {
        let area = Area::small(3).unwrap();
        area.expect(0..3, ZERO).unwrap();
        area.write(1..3, 7);
        area.expect(1..3, 7).unwrap();
        area.write_word(2, 511, 1);
        let error = area.expect(0..3, 7).unwrap_err().to_string();
        assert!(error.contains("word 0 of page 0"), "{error}");
        let error = area.expect(1..3, 7).unwrap_err().to_string();
        assert!(error.contains("word 511 of page 2"), "{error}");
    }

    #[test]
    fn moved_pages_keep_their_numbers() {
        let area = Area::small(4).unwrap();
        area.write(0..4, 9);
        let place = Area::small(4).unwrap();
        let moved = area.remap(2..4, &place, 1).unwrap();
        moved.expect(0..2, 9).unwrap();
        assert_eq!(moved.address(0), place.address(1));
    }
}
