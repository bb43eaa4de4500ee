// SPDX-License-Identifier: GPL-2.0

//! Which pages of a space are mapped on the device.
//!
//! The record may contain pages that are not mapped any more, but it contains every page that is.
//! So changes of other pages cost no round trip to the device. It also tells which pages the device
//! may write to, to which it has exclusive access, and behind which `Map` another queue has to
//! come. Knows neither the device nor the process.

use crate::{
    device::queue::Position,
    mm::{address_at, HPAGE_PMD_NR, HPAGE_PMD_SIZE},
};
use core::ops::Range;
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    page::PAGE_SHIFT,
    prelude::*,
    rbtree::{RBTree, RBTreeNodeReservation},
};

/// The number of words in a set of the pages of a region.
const WORDS: usize = HPAGE_PMD_NR / u64::BITS as usize;

/// A set of the pages of a region of 2 MiB.
#[derive(Clone, Copy)]
struct PageSet([u64; WORDS]);

impl PageSet {
    const EMPTY: Self = Self([0; WORDS]);

    /// The pages with these indices.
    fn of(pages: Range<usize>) -> Self {
        let mut set = Self::EMPTY;
        set.insert(pages);
        set
    }

    /// Adds these pages. Called for each entry of a `Map`, so it only visits words that change.
    fn insert(&mut self, pages: Range<usize>) {
        let mut first = pages.start & !63;
        while first < pages.end {
            let Some(word) = self.0.get_mut(first / 64) else {
                return;
            };
            let below = |page: usize| lowest(page.saturating_sub(first));
            *word |= below(pages.end) & !below(pages.start);
            first = first.saturating_add(64);
        }
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

/// A word with the lowest `count` bits set, or all bits if there are fewer.
fn lowest(count: usize) -> u64 {
    let next = u32::try_from(count)
        .ok()
        .and_then(|count| 1_u64.checked_shl(count));
    next.map_or(u64::MAX, |next| next.wrapping_sub(1))
}

/// The first address of the region around an address.
fn region_start(address: usize) -> usize {
    address & !(HPAGE_PMD_SIZE - 1)
}

/// The part of a range that lies in a region, as indices of its pages.
fn part(range: &Range<usize>, region: usize) -> Range<usize> {
    let index = |address: usize| address.saturating_sub(region).min(HPAGE_PMD_SIZE) >> PAGE_SHIFT;
    index(range.start)..index(range.end)
}

/// How pages of a region are mapped.
#[derive(Clone, Copy)]
struct Mappings {
    /// The mapped pages.
    all: PageSet,
    /// Those among them that the device may write to.
    writable: PageSet,
    /// Those among them that no CPU can access meanwhile.
    exclusive: PageSet,
    /// The last `Map` of any of them, if there is one. The device may not have carried it out yet.
    last_map: Option<Position>,
}

impl Mappings {
    const NONE: Self = Self {
        all: PageSet::EMPTY,
        writable: PageSet::EMPTY,
        exclusive: PageSet::EMPTY,
        last_map: None,
    };

    fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// Replaces the mappings of the pages that are mapped in `other`.
    fn replace(&mut self, other: &Self) {
        self.remove(&other.all);
        self.all.zip(&other.all, |set, more| set | more);
        self.writable.zip(&other.writable, |set, more| set | more);
        self.exclusive.zip(&other.exclusive, |set, more| set | more);
        self.last_map = other.last_map.or(self.last_map);
    }

    fn remove(&mut self, pages: &PageSet) {
        for set in [&mut self.all, &mut self.writable, &mut self.exclusive] {
            set.zip(pages, |set, gone| set & !gone);
        }
    }
}

/// Pages of one region that are about to be mapped, and the preallocated node to record them.
pub(crate) struct Region {
    start: usize,
    mappings: Mappings,
    node: RBTreeNodeReservation<usize, Mappings>,
}

impl Region {
    /// The region around an address, without pages yet. The record grows as the process maps more,
    /// so it is charged to the process's control group.
    pub(crate) fn around(address: usize) -> Result<Self> {
        Ok(Self {
            start: region_start(address),
            mappings: Mappings::NONE,
            node: RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?,
        })
    }

    /// Adds `pages` pages from `address` on, which lie in the region.
    pub(crate) fn add(&mut self, address: usize, pages: usize, write: bool) {
        let range = address..address_at(address, pages);
        let pages = part(&range, self.start);
        if write {
            self.mappings.writable.insert(pages.clone());
        }
        self.mappings.all.insert(pages);
    }

    /// Adds the page at `address`, which lies in the region, as one that the device may write to
    /// and that no CPU can access.
    pub(crate) fn add_exclusive(&mut self, address: usize) {
        self.add(address, 1, true);
        let page = part(&(address..address_at(address, 1)), self.start);
        self.mappings.exclusive.insert(page);
    }
}

/// A node that was not needed. May be dropped, and thus freed, in any context.
pub(crate) struct Leftover(#[expect(dead_code)] RBTreeNodeReservation<usize, Mappings>);

/// The pages of a space that may be mapped.
pub(crate) struct Mapped {
    /// Regions by their first address; none of them is empty.
    regions: RBTree<usize, Mappings>,
    /// The space is ended: nothing may be mapped any more.
    ended: bool,
    /// The device does not have the space for now, so nothing may be mapped.
    asleep: bool,
    /// The number of unanswered requests about the space on other queues than the control queue.
    elsewhere: u32,
}

impl Mapped {
    /// No pages.
    pub(crate) fn new() -> Self {
        Self {
            regions: RBTree::new(),
            ended: false,
            asleep: false,
            elsewhere: 0,
        }
    }

    /// Whether the space is ended, or the device does not have it.
    pub(crate) fn is_ended(&self) -> bool {
        self.ended || self.asleep
    }

    /// Whether the space is ended.
    pub(crate) fn is_over(&self) -> bool {
        self.ended
    }

    /// Whether the space ended while the device did not have it, or was about to lose it.
    pub(crate) fn ended_asleep(&self) -> bool {
        self.ended && self.asleep
    }

    /// Whether the device does not have the space for now.
    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep && !self.ended
    }

    /// Sets whether the device has the space; returns whether the space is ended.
    pub(crate) fn set_asleep(&mut self, asleep: bool) -> bool {
        self.asleep = asleep;
        self.ended
    }

    /// Ends the space; returns whether it was already ended.
    pub(crate) fn end(&mut self) -> bool {
        core::mem::replace(&mut self.ended, true)
    }

    /// A request about the space goes to another queue than the control queue.
    pub(crate) fn begin_elsewhere(&mut self) {
        self.elsewhere = self.elsewhere.saturating_add(1);
    }

    /// Such a request has been answered.
    pub(crate) fn end_elsewhere(&mut self) {
        self.elsewhere = self.elsewhere.saturating_sub(1);
    }

    /// Whether another queue has such a request.
    pub(crate) fn is_elsewhere(&self) -> bool {
        self.elsewhere > 0
    }

    /// Records pages and the position of their `Map`, unless there are none. Does not allocate.
    pub(crate) fn record(&mut self, mut region: Region, map: Option<Position>) -> Option<Leftover> {
        region.mappings.last_map = map;
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

    /// Whether all pages of a range are recorded and, with `write`, recorded as writable by the
    /// device.
    pub(crate) fn covers(&self, range: &Range<usize>, write: bool) -> bool {
        let mut regions = (region_start(range.start)..range.end).step_by(HPAGE_PMD_SIZE);
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

    /// Whether any page of a range is recorded as one that no CPU can access.
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
            from = region.saturating_add(HPAGE_PMD_SIZE);
        }
        false
    }

    /// The last `Map` in the regions that a range lies in, as far as their pages are recorded. A
    /// page that is no longer recorded was unmapped behind its `Map`.
    pub(crate) fn last_map(&self, range: &Range<usize>) -> Option<Position> {
        let regions = (region_start(range.start)..range.end).step_by(HPAGE_PMD_SIZE);
        regions
            .filter_map(|region| self.regions.get(&region)?.last_map)
            .reduce(Position::later)
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
                let start = address_at(region, first);
                // Beyond this region only the end of the last region matters: the device does not
                // mind holes in between.
                let behind = *self.regions.cursor_back()?.current().0;
                let end = if behind == region || range.end <= region.saturating_add(HPAGE_PMD_SIZE)
                {
                    address_at(region, last.saturating_add(1))
                } else {
                    range.end.min(behind.saturating_add(HPAGE_PMD_SIZE))
                };
                return Some(start..end);
            }
            from = region.saturating_add(HPAGE_PMD_SIZE);
        }
    }

    /// Removes the pages of a range from the record. Does not sleep.
    pub(crate) fn forget(&mut self, range: &Range<usize>) {
        let mut next = region_start(range.start);
        let mut cursor = self.regions.cursor_lower_bound_mut(&next);
        while let Some(mut at) = cursor {
            let (&region, mappings) = at.current_mut();
            // Beyond the last region, the cursor moves back to the previous one.
            if !(next..range.end).contains(&region) {
                break;
            }
            next = region.saturating_add(HPAGE_PMD_SIZE);
            mappings.remove(&PageSet::of(part(range, region)));
            cursor = if mappings.is_empty() {
                at.remove_current().0
            } else {
                at.move_next()
            };
        }
    }
}
