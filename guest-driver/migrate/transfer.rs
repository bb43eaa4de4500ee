// SPDX-License-Identifier: GPL-2.0

//! Copies the contents of pages that move.
//!
//! A [`Transfer`] has given new memory to pages that were collected, and has the device copy their
//! contents. While it exists, the pages cannot be taken away from under the device: it owns what
//! was collected, and dropping it waits until every copy is done or will not be done.
//!
//! Knows neither why pages move nor what happens to those that could not be copied.

use crate::{
    device::{
        command::Copy,
        core::Core,
        pool::ListBuffer,
        queue::{Command, Link, Message, Reply, Sent},
    },
    late,
    mm::{
        memremap::{DevPagemap, DevPagemapOps},
        migrate::{Collected, Committed, Slot, Source},
        pages_of,
    },
    quirks::skip::may_move,
    uapi::late::LatePoint,
    wire::{
        command::Status,
        dma::{DmaItem, ItemResult, Kind},
    },
};
use core::ops::Range;
use kernel::prelude::*;

/// How a list of copies is submitted to the device.
pub(crate) trait Carrier {
    /// The request; its reply has a result for each entry.
    type Request: Command<Output = ItemResult>;

    /// The entry that copies the collected pages at these indices.
    fn entry(&self, indices: &Range<usize>, item: DmaItem) -> <Self::Request as Command>::Entry;

    /// Submits the request, which is about the pages at `indices`. `None` if the device has been
    /// given up.
    ///
    /// # Errors
    ///
    /// An error if the pages must not be copied in this way after all.
    fn send(
        &self,
        link: &Link,
        message: Message<Self::Request>,
        indices: &[Range<usize>],
    ) -> Result<Option<Sent<Self::Request>>>;
}

/// On the queue for copies, which may take long.
pub(crate) struct Plain;

impl Carrier for Plain {
    type Request = Copy;

    fn entry(&self, _indices: &Range<usize>, item: DmaItem) -> DmaItem {
        item
    }

    fn send(
        &self,
        link: &Link,
        message: Message<Copy>,
        _indices: &[Range<usize>],
    ) -> Result<Option<Sent<Copy>>> {
        Ok(link.submit(message).ok())
    }
}

/// The result of a move, in pages.
#[derive(Clone, Copy, Default)]
pub(crate) struct Tally {
    /// Pages that could have been moved.
    pub(crate) offered: u64,
    /// Pages that have been moved, each once.
    pub(crate) moved: u64,
    /// Huge pages among the moved pages, each counted once.
    pub(crate) large: u64,
    /// Pages for which there was no memory at the destination.
    pub(crate) no_memory: u64,
    /// Pages of VMAs that cannot be migrated.
    pub(crate) unmovable: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.moved = self.moved.saturating_add(other.moved);
        self.large = self.large.saturating_add(other.large);
        self.no_memory = self.no_memory.saturating_add(other.no_memory);
        self.offered = self.offered.saturating_add(other.offered);
        self.unmovable = self.unmovable.saturating_add(other.unmovable);
    }

    /// Counts a folio of this order that has been moved.
    pub(crate) fn count(&mut self, order: u32) {
        self.moved = self.moved.saturating_add(pages_of(order) as u64);
        self.large = self.large.saturating_add((order > 0).into());
    }
}

/// Pages whose contents are being copied.
pub(crate) struct Transfer<'t, 'c, C: Carrier> {
    // Drop order: the copy ends before the pages are given back.
    copying: Copying<'t, C>,
    collected: Collected<'c>,
}

/// A list of copies that has been submitted.
struct Copying<'t, C: Carrier> {
    link: &'t Link,
    /// None if there is nothing to copy, or if the device has been given up.
    request: Option<Sent<C::Request>>,
    /// A message that turned out to be unnecessary.
    unused: Option<Message<C::Request>>,
    covered: KVVec<Range<usize>>,
    /// Pages whose contents the device had lost before.
    lost: KVec<Range<usize>>,
    /// The life of the device in which they were given its memory.
    life: u32,
}

impl<C: Carrier> Drop for Copying<'_, C> {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            // The transfer was abandoned, so the result does not matter.
            let _ = request.wait(self.link);
        }
    }
}

impl<'t, 'c, C: Carrier> Transfer<'t, 'c, C> {
    /// Gives new memory to everything that has been collected; `fill` does that and returns whether
    /// there was any. Then has the device begin to copy or clear, by one request in which adjacent
    /// pages form one item. `buffer` must be large enough for what was collected.
    ///
    /// # Errors
    ///
    /// What `fill` or the carrier returns. All pages are then where they were.
    pub(crate) fn begin<M: DevPagemapOps>(
        core: &'t Core,
        carrier: &C,
        pagemap: &DevPagemap<M>,
        mut collected: Collected<'c>,
        buffer: ListBuffer<C::Request>,
        mut fill: impl FnMut(&mut Collected<'c>, Slot) -> Result<bool>,
    ) -> Result<Self> {
        // Read first: losses of an earlier life are recorded before the new life begins.
        let life = core.link.life();
        let mut lost = KVec::new();
        let mut list = List {
            carrier,
            buffer,
            last: None,
        };
        let mut next = 0;
        while let Some(slot) = collected.next_slot(next) {
            next = slot.indices().end;
            if may_move(&collected, slot.index) && fill(&mut collected, slot)? {
                if is_lost(core, pagemap, slot) {
                    lost.push(slot.index..next, GFP_KERNEL)?;
                } else {
                    list.add_slot(pagemap, &collected, slot)?;
                }
            }
        }
        let ListBuffer { message, covered } = list.finish()?;
        let link = &core.link;
        late::at(LatePoint::Collected);
        let (request, unused) = if covered.is_empty() {
            (None, Some(message))
        } else {
            (carrier.send(link, message, &covered)?, None)
        };
        Ok(Self {
            copying: Copying {
                link,
                request,
                unused,
                covered,
                lost,
                life,
            },
            collected,
        })
    }

    /// Waits until everything has been copied. Calls `failed` for each slot that was not. Also
    /// returns the buffer for the next list, unless the device refused this one. {drv-region-live}
    ///
    /// # Errors
    ///
    /// What `failed` returns.
    pub(crate) fn end(
        self,
        mut failed: impl FnMut(&mut Collected<'_>, Slot) -> Result,
    ) -> Result<(Collected<'c>, Option<ListBuffer<C::Request>>)> {
        let Self {
            mut copying,
            mut collected,
        } = self;
        let request = copying.request.take();
        let reply = request.and_then(|request| request.wait(copying.link).ok());
        late::at(LatePoint::Copied);
        // If the device has been restarted, it has lost what it copied.
        let reply = reply.filter(|_| copying.link.life() == copying.life);
        for lost in &copying.lost {
            each_filled(&mut collected, lost, &mut failed)?;
        }
        for (number, covered) in copying.covered.iter().enumerate() {
            if !is_done(copying.link, reply.as_ref(), number) {
                each_filled(&mut collected, covered, &mut failed)?;
            }
        }
        let message = reply.map_or(copying.unused.take(), Reply::reuse);
        let mut covered = core::mem::take(&mut copying.covered);
        covered.clear();
        let buffer = message.map(|message| ListBuffer { message, covered });
        Ok((collected, buffer))
    }
}

impl<'c, C: Carrier> Transfer<'_, 'c, C> {
    /// Waits until everything has been copied; pages that could not be copied stay where they were.
    ///
    /// # Errors
    ///
    /// As [`Self::end`].
    pub(crate) fn end_or_stay(self) -> Result<(Collected<'c>, Option<ListBuffer<C::Request>>)> {
        self.end(|collected, slot| {
            collected.empty_slot(slot);
            Ok(())
        })
    }
}

/// Whether the device has lost what was in a slot.
pub(crate) fn is_lost<M: DevPagemapOps>(core: &Core, pagemap: &DevPagemap<M>, slot: Slot) -> bool {
    let frame = match slot.source {
        Source::Hole => None,
        Source::Folio(pfn) => pagemap.frame(pfn),
    };
    frame.is_some_and(|frame| core.frames.is_lost(frame, slot.pages()))
}

/// Calls `visit` for the slots that overlap `pages` and have been given new memory.
fn each_filled(
    collected: &mut Collected<'_>,
    pages: &Range<usize>,
    visit: &mut impl FnMut(&mut Collected<'_>, Slot) -> Result,
) -> Result {
    let mut index = 0;
    while let Some(slot) = collected.next_slot(index) {
        index = slot.indices().end;
        let concerned = slot.index < pages.end && pages.start < index;
        if concerned && collected.is_filled(slot.index) {
            visit(collected, slot)?;
        }
    }
    Ok(())
}

/// Whether the device reports that it has copied the item with this number.
fn is_done<R>(link: &Link, reply: Option<&Reply<R>>, number: usize) -> bool
where
    R: Command<Output = ItemResult>,
{
    let result = reply.and_then(|reply| reply.output(link, number).ok());
    result.is_some_and(|result| result.status.get() == Status::Ok.raw())
}

/// The item that copies `pages` pages from the source to the frame `pfn`. {drv-own-frames}
fn item<M: DevPagemapOps>(
    pagemap: &DevPagemap<M>,
    source: Source,
    pfn: usize,
    pages: u32,
) -> DmaItem {
    match (source, pagemap.frame(pfn)) {
        // {drv-no-stale-frames}
        (Source::Hole, Some(frame)) => Copy::clear(frame, pages),
        (Source::Folio(from), Some(frame)) => Copy::to_device(from as u64, frame, pages),
        (Source::Folio(from), None) => {
            // Only pages of this device memory are collected to be moved back. The device refuses a
            // frame that is not valid.
            let from = pagemap.frame(from).unwrap_or(u64::MAX);
            Copy::to_system(from, pfn as u64, pages)
        }
        // Holes are only filled with device memory.
        (Source::Hole, None) => Copy::to_system(u64::MAX, pfn as u64, pages),
    }
}

/// A list of copy items under construction.
struct List<'l, C: Carrier> {
    carrier: &'l C,
    buffer: ListBuffer<C::Request>,
    /// The last item, which the next one may extend.
    last: Option<(Range<usize>, DmaItem)>,
}

impl<C: Carrier> List<'_, C> {
    /// Adds the pages of a slot that have been given memory.
    fn add_slot<M: DevPagemapOps>(
        &mut self,
        pagemap: &DevPagemap<M>,
        collected: &Collected<'_>,
        slot: Slot,
    ) -> Result {
        let mut indices = slot.indices();
        while let Some(index) = indices.next() {
            let Some((pfn, order)) = collected.new_memory(index) else {
                continue;
            };
            let source = match slot.source {
                Source::Hole => Source::Hole,
                Source::Folio(first) => {
                    Source::Folio(first.saturating_add(index.saturating_sub(slot.index)))
                }
            };
            let pages = pages_of(order);
            self.add(index, item(pagemap, source, pfn, pages as u32))?;
            indices.start = index.saturating_add(pages);
        }
        Ok(())
    }

    /// Adds an item for the pages from `index` on.
    fn add(&mut self, index: usize, item: DmaItem) -> Result {
        let pages = item.pages.get();
        if let Some((covered, last)) = &mut self.last {
            let moved = u64::from(last.pages.get());
            let reads = last.kind.get() != Kind::Clear.raw();
            let follows = |one: u64, other: u64| one.checked_add(moved) == Some(other);
            if covered.end == index
                && last.kind == item.kind
                && (!reads || follows(last.source.get(), item.source.get()))
                && follows(last.destination.get(), item.destination.get())
            {
                covered.end = covered.end.saturating_add(pages as usize);
                last.pages = last.pages.get().saturating_add(pages).into();
                return Ok(());
            }
        }
        self.flush()?;
        let end = index.saturating_add(pages as usize);
        self.last = Some((index..end, item));
        Ok(())
    }

    fn flush(&mut self) -> Result {
        if let Some((covered, item)) = self.last.take() {
            let buffer = &mut self.buffer;
            buffer.message.push(&self.carrier.entry(&covered, item))?;
            // Within the capacity this does not allocate.
            buffer.covered.push(covered, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// Returns the buffer with the list in it.
    fn finish(mut self) -> Result<ListBuffer<C::Request>> {
        self.flush()?;
        Ok(self.buffer)
    }
}

/// Counts the pages that have been moved.
pub(crate) fn count(committed: &Committed<'_>, tally: &mut Tally) {
    each_moved(committed, |_, order| tally.count(order));
}

/// Calls `see` with the first index and log2 of the pages of each folio that has been moved.
pub(crate) fn each_moved(committed: &Committed<'_>, mut see: impl FnMut(usize, u32)) {
    let mut index = 0;
    while index < committed.pages() {
        let order = committed.moved_order(index);
        if let Some(order) = order {
            see(index, order);
        }
        index = index.saturating_add(pages_of(order.unwrap_or(0)));
    }
}
