// SPDX-License-Identifier: GPL-2.0

//! Which pages of a space are mapped on the device.
//!
//! A record that may name pages which are not mapped any more, but names every page that
//! is. Kept so that changes of other pages cost no round trip to the device. Knows
//! neither the device nor the process.

use crate::mm::{LARGE_PAGES, LARGE_SIZE, PAGE_SHIFT, PAGE_SIZE};
use core::ops::Range;
use kernel::{
    prelude::*,
    rbtree::{RBTree, RBTreeNodeReservation},
};

/// The words of a set of the pages of a region.
const WORDS: usize = LARGE_PAGES / u64::BITS as usize;

/// A set of the pages of a region of 2 MiB.
#[derive(Clone, Copy)]
struct PageSet([u64; WORDS]);

impl PageSet {
    const EMPTY: Self = Self([0; WORDS]);

    /// The pages from one place to before another.
    fn of(pages: Range<usize>) -> Self {
        let mut set = Self::EMPTY;
        for page in pages {
            set.0[page / 64] |= 1 << (page % 64);
        }
        set
    }

    fn zip(&mut self, other: &Self, combine: impl Fn(u64, u64) -> u64) {
        for (word, other) in self.0.iter_mut().zip(&other.0) {
            *word = combine(*word, *other);
        }
    }

    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The first and the last page, if there are any.
    fn bounds(&self) -> Option<(usize, usize)> {
        let first = self.0.iter().position(|word| *word != 0)?;
        let last = self.0.iter().rposition(|word| *word != 0)?;
        Some((
            first * 64 + self.0[first].trailing_zeros() as usize,
            last * 64 + 63 - self.0[last].leading_zeros() as usize,
        ))
    }
}

/// The first address of the region around an address.
fn region_start(address: usize) -> usize {
    address & !(LARGE_SIZE - 1)
}

/// The part of a range that lies in a region, as places of its pages.
fn part(range: &Range<usize>, region: usize) -> Range<usize> {
    let start = range.start.max(region) - region;
    let end = range.end.min(region + LARGE_SIZE) - region;
    start >> PAGE_SHIFT..end >> PAGE_SHIFT
}

/// Pages of one region that are about to be mapped, and the memory to record them.
pub(crate) struct Region {
    start: usize,
    pages: PageSet,
    node: RBTreeNodeReservation<usize, PageSet>,
}

impl Region {
    /// No pages yet, of the region around an address.
    pub(crate) fn around(address: usize) -> Result<Self> {
        Ok(Self {
            start: region_start(address),
            pages: PageSet::EMPTY,
            node: RBTreeNodeReservation::new(GFP_KERNEL)?,
        })
    }

    /// Adds `pages` pages from `address` on, which lie in the region.
    pub(crate) fn add(&mut self, address: usize, pages: usize) {
        let range = address..address + pages * PAGE_SIZE;
        let more = PageSet::of(part(&range, self.start));
        self.pages.zip(&more, |set, more| set | more);
    }
}

/// Memory that was not needed. Freed when it is dropped, which may be done anywhere.
pub(crate) struct Leftover(#[expect(dead_code)] RBTreeNodeReservation<usize, PageSet>);

/// The pages of a space that may be mapped.
pub(crate) struct Mapped {
    /// Regions by their first address; none is empty.
    regions: RBTree<usize, PageSet>,
    /// The space is ended: nothing may be mapped any more.
    ended: bool,
}

impl Mapped {
    /// Nothing.
    pub(crate) fn new() -> Self {
        Self {
            regions: RBTree::new(),
            ended: false,
        }
    }

    /// Whether the space is ended.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended
    }

    /// Ends the space; says whether it was ended before.
    pub(crate) fn end(&mut self) -> bool {
        core::mem::replace(&mut self.ended, true)
    }

    /// Records pages. Does not allocate.
    pub(crate) fn record(&mut self, region: Region) -> Option<Leftover> {
        if region.pages.is_empty() {
            return Some(Leftover(region.node));
        }
        if let Some(pages) = self.regions.get_mut(&region.start) {
            pages.zip(&region.pages, |set, more| set | more);
            return Some(Leftover(region.node));
        }
        let node = region.node.into_node(region.start, region.pages);
        self.regions.insert(node);
        None
    }

    /// A range that contains all pages of `range` that are recorded, if there are any.
    pub(crate) fn within(&self, range: &Range<usize>) -> Option<Range<usize>> {
        let mut from = region_start(range.start);
        loop {
            let cursor = self.regions.cursor_lower_bound(&from)?;
            let (&region, pages) = cursor.current();
            if region >= range.end {
                return None;
            }
            let mut pages = *pages;
            pages.zip(&PageSet::of(part(range, region)), |set, part| set & part);
            if let Some((first, last)) = pages.bounds() {
                let start = region + (first << PAGE_SHIFT);
                // Beyond this region it is enough to know where the last one lies: holes
                // between them do not matter to the device.
                let behind = *self.regions.cursor_back()?.current().0;
                let end = if behind == region || range.end <= region + LARGE_SIZE {
                    region + ((last + 1) << PAGE_SHIFT)
                } else {
                    range.end.min(behind + LARGE_SIZE)
                };
                return Some(start..end);
            }
            from = region + LARGE_SIZE;
        }
    }

    /// Takes the pages of a range out of the record. Does not sleep.
    pub(crate) fn forget(&mut self, range: &Range<usize>) {
        let mut next = region_start(range.start);
        let mut cursor = self.regions.cursor_lower_bound_mut(&next);
        while let Some(mut at) = cursor {
            let (&region, pages) = at.current_mut();
            // Behind the last region of all, the cursor goes back to the one before.
            if !(next..range.end).contains(&region) {
                break;
            }
            next = region + LARGE_SIZE;
            pages.zip(&PageSet::of(part(range, region)), |set, part| set & !part);
            cursor = if pages.is_empty() {
                at.remove_current().0
            } else {
                at.move_next()
            };
        }
    }
}
