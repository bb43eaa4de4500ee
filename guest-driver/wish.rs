// SPDX-License-Identifier: GPL-2.0

//! What is wanted of a region of 2 MiB: which pages, and for what.
//!
//! Knows neither the device nor how pages are made present and mapped.

use crate::mm::{
    hmm::Want,
    migrate::{large_range, page_range},
    LockedMm, LARGE_PAGES, PAGE_SHIFT,
};
use core::ops::Range;
use kernel::mm::MmWithUser;

/// What is done to let the device replace values atomically.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Atomics {
    /// Nothing: nobody asks for it.
    Unwanted,
    /// Pages in device memory are mapped so.
    InDevice,
    /// Any page is mapped so.
    Anywhere,
}

/// What of a region is to be mapped.
pub(crate) struct Wish {
    /// The part of the region that lies in one memory area.
    pub(crate) window: Range<usize>,
    /// What is asked of each page of the window, if anything.
    pages: [Option<Want>; LARGE_PAGES],
    /// Which pages of the window are to be mapped if they are present.
    around: Range<usize>,
    /// Somebody wants to write.
    pub(crate) write: bool,
    pub(crate) atomics: Atomics,
}

impl Wish {
    /// Nothing, of the region around an address. `None` if the process has nothing there.
    pub(crate) fn around(mm: &MmWithUser, address: usize) -> Option<Self> {
        let locked = LockedMm::new(mm);
        let vma = locked.lookup(address)?;
        Some(Self {
            window: vma.clip(&large_range(address)),
            pages: [None; LARGE_PAGES],
            around: 0..0,
            write: false,
            atomics: Atomics::Unwanted,
        })
    }

    /// How many pages can be wished for.
    pub(crate) fn len(&self) -> usize {
        self.window.len() >> PAGE_SHIFT
    }

    /// The place of an address among these pages, if it is one of them.
    pub(crate) fn place(&self, address: u64) -> Option<usize> {
        let offset = address.checked_sub(self.window.start as u64)?;
        let place = usize::try_from(offset >> PAGE_SHIFT).ok()?;
        (place < self.len()).then_some(place)
    }

    /// The places of a range of addresses, as far as they are among these pages.
    pub(crate) fn places(&self, range: &Range<usize>) -> Range<usize> {
        let place = |address: usize| {
            let inside = address.clamp(self.window.start, self.window.end);
            (inside - self.window.start) >> PAGE_SHIFT
        };
        place(range.start)..place(range.end)
    }

    /// The place among these pages of what is the next multiple of `pages` pages in the
    /// address space, before a place and behind another one.
    pub(crate) fn widened(&self, places: &Range<usize>, pages: usize) -> Range<usize> {
        let base = self.window.start >> PAGE_SHIFT;
        let start = ((base + places.start) / pages * pages).max(base) - base;
        let end = ((base + places.end).next_multiple_of(pages) - base).min(self.len());
        start..end
    }

    /// Asks for pages, in addition to what has been asked.
    pub(crate) fn want(&mut self, places: Range<usize>, want: Want) {
        self.write |= want == Want::Write;
        for page in self.pages.get_mut(places).unwrap_or_default() {
            if *page != Some(Want::Write) {
                *page = Some(want);
            }
        }
    }

    /// Asks for pages at and between these places, and those that have been named before,
    /// if they are present.
    pub(crate) fn welcome(&mut self, places: Range<usize>) {
        self.around = if self.around.is_empty() {
            places
        } else {
            self.around.start.min(places.start)..self.around.end.max(places.end)
        };
    }

    /// Asks for one page so that values in it can be replaced atomically.
    pub(crate) fn want_atomics(&mut self, address: usize, atomics: Atomics) {
        self.want(self.places(&page_range(address)), Want::Write);
        self.atomics = atomics;
    }

    pub(crate) fn asks_for(&self, place: usize) -> Option<Want> {
        self.pages.get(place).copied().flatten()
    }

    pub(crate) fn is_wanted(&self, place: usize) -> bool {
        self.asks_for(place).is_some() || self.around.contains(&place)
    }

    /// The longest ranges of addresses of which the same is asked.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (Range<usize>, Want)> + '_ {
        let mut place = 0;
        let groups = self.pages[..self.len()].chunk_by(|one, other| one == other);
        groups.filter_map(move |group| {
            let start = self.window.start + (place << PAGE_SHIFT);
            place += group.len();
            let end = self.window.start + (place << PAGE_SHIFT);
            Some((start..end, (*group.first()?)?))
        })
    }
}
