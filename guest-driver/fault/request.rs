// SPDX-License-Identifier: GPL-2.0

//! Which pages of a region of 2 MiB are requested, and for what access.
//!
//! Knows neither the device nor how pages are made present and mapped.

use crate::mm::{address_at, hmm::HmmRequest, hpage_range, page_range, LockedMm, HPAGE_PMD_NR};
use core::ops::Range;
use kernel::{mm::MmWithUser, page::PAGE_SHIFT};

/// How the device is allowed to replace values atomically.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Atomics {
    /// It is not: no job has requested it.
    Unwanted,
    /// Only pages in device memory are mapped for it.
    InDevice,
    /// Any page is mapped for it.
    Anywhere,
}

/// The part of a region that is to be mapped.
pub(crate) struct FaultRequest {
    /// The part of the region that lies in one VMA.
    pub(crate) window: Range<usize>,
    /// The access requested for each page of the window, if any.
    pages: [Option<HmmRequest>; HPAGE_PMD_NR],
    /// The pages of the window to map if they are present.
    around: Range<usize>,
    /// Whether a job has requested to write.
    pub(crate) write: bool,
    /// Whether userfaultfd(2) may be tracking writes.
    pub(crate) is_tracked: bool,
    pub(crate) atomics: Atomics,
}

impl FaultRequest {
    /// An empty request for the region around an address. `None` if the process has nothing there,
    /// or what only its own CPUs may access.
    pub(crate) fn around(mm: &MmWithUser, address: usize) -> Option<Self> {
        let locked = LockedMm::new(mm);
        let vma = locked
            .lookup(address)
            .filter(|vma| !vma.is_private_to_cpus())?;
        Some(Self {
            window: vma.clip(&hpage_range(address)),
            pages: [None; HPAGE_PMD_NR],
            around: 0..0,
            write: false,
            is_tracked: vma.is_write_tracked(),
            atomics: Atomics::Unwanted,
        })
    }

    /// The number of pages in the window.
    pub(crate) fn len(&self) -> usize {
        self.window.len() >> PAGE_SHIFT
    }

    /// The index of an address's page in the window, if it is in there.
    pub(crate) fn index_of(&self, address: u64) -> Option<usize> {
        let offset = address.checked_sub(self.window.start as u64)?;
        let index = usize::try_from(offset >> PAGE_SHIFT).ok()?;
        (index < self.len()).then_some(index)
    }

    /// The indices of the part of a range of addresses that lies in the window.
    pub(crate) fn indices(&self, range: &Range<usize>) -> Range<usize> {
        let index = |address: usize| {
            let offset = address.saturating_sub(self.window.start);
            offset.min(self.window.len()) >> PAGE_SHIFT
        };
        index(range.start)..index(range.end)
    }

    /// These indices aligned outwards to multiples of `pages` pages in the address space, as far as
    /// they lie in the window.
    pub(crate) fn align_out(&self, indices: &Range<usize>, pages: usize) -> Range<usize> {
        let base = self.window.start >> PAGE_SHIFT;
        let first = base.saturating_add(indices.start);
        let before = first.checked_rem(pages).unwrap_or(0);
        let end = base.saturating_add(indices.end);
        let end = end.checked_next_multiple_of(pages).unwrap_or(end);
        indices.start.saturating_sub(before)..end.saturating_sub(base).min(self.len())
    }

    /// Requests pages, in addition to earlier requests.
    pub(crate) fn require(&mut self, indices: Range<usize>, want: HmmRequest) {
        self.write |= want == HmmRequest::Write;
        for page in self.pages.get_mut(indices).unwrap_or_default() {
            if *page != Some(HmmRequest::Write) {
                *page = Some(want);
            }
        }
    }

    /// Requests pages if they are present: these, those of earlier calls, and those in between.
    pub(crate) fn add_optional(&mut self, indices: Range<usize>) {
        self.around = if self.around.is_empty() {
            indices
        } else {
            self.around.start.min(indices.start)..self.around.end.max(indices.end)
        };
    }

    /// Requests one page so that values in it can be replaced atomically.
    pub(crate) fn require_atomics(&mut self, address: usize, atomics: Atomics) {
        self.require(self.indices(&page_range(address)), HmmRequest::Write);
        self.atomics = atomics;
    }

    pub(crate) fn access_at(&self, index: usize) -> Option<HmmRequest> {
        self.pages.get(index).copied().flatten()
    }

    /// The strongest access requested for any page.
    pub(crate) fn strongest_access(&self) -> Option<HmmRequest> {
        let mut asked = self.pages.iter().flatten().peekable();
        let first = asked.peek().map(|want| **want);
        first.map(|first| {
            if asked.any(|want| *want == HmmRequest::Write) {
                HmmRequest::Write
            } else {
                first
            }
        })
    }

    pub(crate) fn is_requested(&self, index: usize) -> bool {
        self.access_at(index).is_some() || self.around.contains(&index)
    }

    /// The longest ranges of addresses with the same access requested.
    pub(crate) fn runs(&self) -> impl Iterator<Item = (Range<usize>, HmmRequest)> + '_ {
        let mut index = 0_usize;
        let pages = self.pages.get(..self.len()).unwrap_or_default();
        let groups = pages.chunk_by(|one, other| one == other);
        groups.filter_map(move |group| {
            let start = address_at(self.window.start, index);
            index = index.saturating_add(group.len());
            let end = address_at(self.window.start, index);
            Some((start..end, (*group.first()?)?))
        })
    }
}
