// SPDX-License-Identifier: GPL-2.0

//! Which pages of a space are mapped on the device.
//!
//! A record that may name pages which are not mapped any more, but names every page that
//! is. Kept so that changes of other pages cost no round trip to the device. Says also
//! which pages the device may write to, and to which it has exclusive access. Knows neither
//! the device nor the process.

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
        let mut next = pages.start;
        while next < pages.end {
            let word = next / 64;
            let end = pages.end.min((word + 1) * 64);
            set.0[word] |= (u64::MAX >> (64 - (end - next))) << (next % 64);
            next = end;
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

/// How pages of a region are mapped.
#[derive(Clone, Copy)]
struct Mappings {
    /// Those that are.
    all: PageSet,
    /// Those among them that the device may write to.
    writable: PageSet,
    /// Those among them that no CPU can touch meanwhile.
    exclusive: PageSet,
}

impl Mappings {
    const NONE: Self = Self {
        all: PageSet::EMPTY,
        writable: PageSet::EMPTY,
        exclusive: PageSet::EMPTY,
    };

    fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Maps pages anew that are mapped in `other`.
    fn replace(&mut self, other: &Self) {
        self.remove(&other.all);
        self.all.zip(&other.all, |set, more| set | more);
        self.writable.zip(&other.writable, |set, more| set | more);
        self.exclusive.zip(&other.exclusive, |set, more| set | more);
    }

    fn remove(&mut self, pages: &PageSet) {
        for set in [&mut self.all, &mut self.writable, &mut self.exclusive] {
            set.zip(pages, |set, gone| set & !gone);
        }
    }
}

/// Pages of one region that are about to be mapped, and the memory to record them.
pub(crate) struct Region {
    start: usize,
    mappings: Mappings,
    node: RBTreeNodeReservation<usize, Mappings>,
}

impl Region {
    /// No pages yet, of the region around an address.
    pub(crate) fn around(address: usize) -> Result<Self> {
        Ok(Self {
            start: region_start(address),
            mappings: Mappings::NONE,
            node: RBTreeNodeReservation::new(GFP_KERNEL)?,
        })
    }

    /// Adds `pages` pages from `address` on, which lie in the region.
    pub(crate) fn add(&mut self, address: usize, pages: usize, write: bool) {
        let range = address..address + pages * PAGE_SIZE;
        let pages = PageSet::of(part(&range, self.start));
        self.mappings.all.zip(&pages, |set, more| set | more);
        if write {
            self.mappings.writable.zip(&pages, |set, more| set | more);
        }
    }

    /// Adds the page at `address`, which lies in the region, as one that the device may
    /// write to and that no CPU can touch.
    pub(crate) fn add_exclusive(&mut self, address: usize) {
        self.add(address, 1, true);
        let page = PageSet::of(part(&(address..address + PAGE_SIZE), self.start));
        self.mappings.exclusive.zip(&page, |set, more| set | more);
    }
}

/// Memory that was not needed. Freed when it is dropped, which may be done anywhere.
pub(crate) struct Leftover(#[expect(dead_code)] RBTreeNodeReservation<usize, Mappings>);

/// The pages of a space that may be mapped.
pub(crate) struct Mapped {
    /// Regions by their first address; none is empty.
    regions: RBTree<usize, Mappings>,
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
        if region.mappings.is_empty() {
            return Some(Leftover(region.node));
        }
        if let Some(mappings) = self.regions.get_mut(&region.start) {
            mappings.replace(&region.mappings);
            return Some(Leftover(region.node));
        }
        let node = region.node.into_node(region.start, region.mappings);
        self.regions.insert(node);
        None
    }

    /// Whether all pages of a range are recorded, and, with `write`, as such that the device
    /// may write to.
    pub(crate) fn covers(&self, range: &Range<usize>, write: bool) -> bool {
        let mut regions = (region_start(range.start)..range.end).step_by(LARGE_SIZE);
        regions.all(|region| {
            let mut lacking = PageSet::of(part(range, region));
            if let Some(mappings) = self.regions.get(&region) {
                let set = if write {
                    &mappings.writable
                } else {
                    &mappings.all
                };
                lacking.zip(set, |part, set| part & !set);
            }
            lacking.is_empty()
        })
    }

    /// Whether any page of a range is recorded as one that no CPU can touch.
    pub(crate) fn has_exclusive(&self, range: &Range<usize>) -> bool {
        let mut from = region_start(range.start);
        while let Some(cursor) = self.regions.cursor_lower_bound(&from) {
            let (&region, mappings) = cursor.current();
            if region >= range.end {
                break;
            }
            let mut found = mappings.exclusive;
            found.zip(&PageSet::of(part(range, region)), |set, part| set & part);
            if !found.is_empty() {
                return true;
            }
            from = region + LARGE_SIZE;
        }
        false
    }

    /// A range that contains all pages of `range` that are recorded, if there are any.
    pub(crate) fn within(&self, range: &Range<usize>) -> Option<Range<usize>> {
        let mut from = region_start(range.start);
        loop {
            let cursor = self.regions.cursor_lower_bound(&from)?;
            let (&region, mappings) = cursor.current();
            if region >= range.end {
                return None;
            }
            let mut pages = mappings.all;
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
            let (&region, mappings) = at.current_mut();
            // Behind the last region of all, the cursor goes back to the one before.
            if !(next..range.end).contains(&region) {
                break;
            }
            next = region + LARGE_SIZE;
            mappings.remove(&PageSet::of(part(range, region)));
            cursor = if mappings.is_empty() {
                at.remove_current().0
            } else {
                at.move_next()
            };
        }
    }
}
