// SPDX-License-Identifier: GPL-2.0

//! The contents of pages on the move.
//!
//! A [`Transfer`] has lent new memory to pages that were collected, and has the device copy
//! what is in them. As long as it exists, nobody can take the pages away from below the device:
//! it holds what was collected, and when it is dropped everything has been copied or will not
//! be.
//!
//! Knows nothing of why pages move, nor of what becomes of those that could not be copied.

use crate::{
    command::Copy,
    device::Core,
    mm::{
        migrate::{Collected, Scratch, Slot, Source},
        pagemap::{DeviceMemory, Pagemap},
    },
    queue::{Command, Link, Message, Reply, Sent},
    wire::{
        command::Status,
        dma::{DmaItem, ItemResult, Kind},
    },
};
use core::ops::Range;
use kernel::{new_mutex, prelude::*, sync::Mutex};

/// How a list of copies is put to the device.
pub(crate) trait Carrier {
    /// The request, which is answered with a result for each entry.
    type Request: Command<Output = ItemResult>;

    /// The entry for a copy of the pages at some places of what was collected.
    fn entry(&self, places: &Range<usize>, item: DmaItem) -> <Self::Request as Command>::Entry;

    /// Hands the request over, which is about these places. `None` if the device has been given
    /// up.
    ///
    /// # Errors
    ///
    /// If it should not be copied in this way after all.
    fn send(
        &self,
        link: &Link,
        message: Message<Self::Request>,
        places: &[Range<usize>],
    ) -> Result<Option<Sent<Self::Request>>>;
}

/// On the queue for copies, which may take their time.
pub(crate) struct Plain;

impl Carrier for Plain {
    type Request = Copy;

    fn entry(&self, _places: &Range<usize>, item: DmaItem) -> DmaItem {
        item
    }

    fn send(
        &self,
        link: &Link,
        message: Message<Copy>,
        _places: &[Range<usize>],
    ) -> Result<Option<Sent<Copy>>> {
        Ok(link.submit(message).ok())
    }
}

/// Memory for one move at a time, to be used again and again.
pub(crate) struct Memory<R: Command> {
    pub(crate) scratch: Scratch,
    pub(crate) list: ListMemory<R>,
}

impl<R: Command> Memory<R> {
    /// Memory for so many pages, by requests about a space, zero if about none.
    pub(crate) fn new(space: u32, pages: usize) -> Result<Self> {
        Ok(Self {
            scratch: Scratch::new(pages)?,
            list: ListMemory {
                message: Message::new(space, pages, pages)?,
                covered: KVVec::with_capacity(pages, GFP_KERNEL)?,
            },
        })
    }
}

/// The part of it that the list of copies takes.
pub(crate) struct ListMemory<R: Command> {
    message: Message<R>,
    /// Which pages each item of the message covers.
    covered: KVVec<Range<usize>>,
}

/// Up to so many pages memory is not worth keeping, unless no move has more.
const FEW: usize = 64;

/// Memory for moves, kept from one to the next. The kernel clears what it gives, which for the
/// lists of a large page takes a tenth of the time of its whole move.
///
/// Lock order: `kept` is taken last.
#[pin_data]
pub(crate) struct Spares<R: Command> {
    /// How many pages each suffices for.
    pages: usize,
    #[pin]
    kept: Mutex<KVec<Memory<R>>>,
}

impl<R: Command> Spares<R> {
    /// For up to `count` moves at a time, of at most `pages` pages each. Nothing is kept yet.
    pub(crate) fn new(count: usize, pages: usize) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            pages,
            kept <- new_mutex!(KVec::with_capacity(count, GFP_KERNEL)?, "Spares::kept"),
        })
    }

    /// Memory for a move of so many pages, by requests about a space, zero if about none.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is none.
    pub(crate) fn take(&self, space: u32, pages: usize) -> Result<Memory<R>> {
        let kept = self.kept.lock().pop();
        if let Some(mut memory) = kept {
            memory.list.message.set_space(space);
            return Ok(memory);
        }
        let is_kept = pages > FEW || self.pages <= FEW;
        Memory::new(space, if is_kept { self.pages } else { pages })
    }

    /// Keeps memory that is not needed any more, with the list unless the device refused it.
    pub(crate) fn keep(&self, scratch: Scratch, list: Option<ListMemory<R>>) {
        let Some(list) = list else { return };
        if scratch.pages() == self.pages {
            let memory = Memory { scratch, list };
            let surplus = self.kept.lock().push_within_capacity(memory);
            // Not with the lock held.
            drop(surplus);
        }
    }
}

/// Pages whose contents are being copied.
pub(crate) struct Transfer<'t, 'c, C: Carrier> {
    // In this order when dropped.
    copying: Copying<'t, C>,
    collected: Collected<'c>,
}

/// A list of copies that has been handed over.
struct Copying<'t, C: Carrier> {
    link: &'t Link,
    /// None if there is nothing to copy, or if the device has been given up.
    request: Option<Sent<C::Request>>,
    /// A message that was not needed.
    unused: Option<Message<C::Request>>,
    covered: KVVec<Range<usize>>,
}

impl<C: Carrier> Drop for Copying<'_, C> {
    fn drop(&mut self) {
        if let Some(request) = self.request.take() {
            // Nobody asks what becomes of it any more.
            let _ = request.wait(self.link);
        }
    }
}

impl<'t, 'c, C: Carrier> Transfer<'t, 'c, C> {
    /// Lends new memory to all that has been collected, by `fill`, which says whether there was
    /// any; and has the device begin to copy, or clear, by one request, in which neighbours are
    /// one item. `memory` must suffice for what was collected.
    ///
    /// # Errors
    ///
    /// What `fill` or the carrier returns. All pages then are where they were.
    pub(crate) fn begin<M: DeviceMemory>(
        core: &'t Core,
        carrier: &C,
        pagemap: &Pagemap<M>,
        mut collected: Collected<'c>,
        memory: ListMemory<C::Request>,
        mut fill: impl FnMut(&mut Collected<'c>, Slot) -> Result<bool>,
    ) -> Result<Self> {
        let mut list = List {
            carrier,
            memory,
            last: None,
        };
        let mut next = 0;
        while let Some(slot) = collected.next_slot(next) {
            next = slot.index + (1 << slot.order);
            if fill(&mut collected, slot)? {
                list.add_slot(pagemap, &collected, slot)?;
            }
        }
        let ListMemory { message, covered } = list.finish()?;
        let link = &core.link;
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
            },
            collected,
        })
    }

    /// Waits until everything has been copied. Calls `failed` for each slot that was not.
    /// Returns also the memory for the next list, unless the device refused this one.
    ///
    /// # Errors
    ///
    /// What `failed` returns.
    pub(crate) fn end(
        self,
        mut failed: impl FnMut(&mut Collected<'_>, Slot) -> Result,
    ) -> Result<(Collected<'c>, Option<ListMemory<C::Request>>)> {
        let Self {
            mut copying,
            mut collected,
        } = self;
        let request = copying.request.take();
        let reply = request.and_then(|request| request.wait(copying.link).ok());
        for (number, covered) in copying.covered.iter().enumerate() {
            if !is_done(reply.as_ref(), number) {
                each_filled(&mut collected, covered, &mut failed)?;
            }
        }
        let message = reply.map_or(copying.unused.take(), Reply::reuse);
        let mut covered = core::mem::take(&mut copying.covered);
        covered.clear();
        let memory = message.map(|message| ListMemory { message, covered });
        Ok((collected, memory))
    }
}

impl<'c, C: Carrier> Transfer<'_, 'c, C> {
    /// Waits until everything has been copied; what could not be copied stays where it was.
    ///
    /// # Errors
    ///
    /// As [`Self::end`].
    pub(crate) fn end_or_stay(self) -> Result<(Collected<'c>, Option<ListMemory<C::Request>>)> {
        self.end(|collected, slot| {
            collected.empty_slot(slot);
            Ok(())
        })
    }
}

/// Calls `visit` for the slots that have to do with some pages and that new memory has been
/// lent to.
fn each_filled(
    collected: &mut Collected<'_>,
    pages: &Range<usize>,
    visit: &mut impl FnMut(&mut Collected<'_>, Slot) -> Result,
) -> Result {
    let mut index = 0;
    while let Some(slot) = collected.next_slot(index) {
        index = slot.index + (1 << slot.order);
        let concerned = slot.index < pages.end && pages.start < index;
        if concerned && collected.is_filled(slot.index) {
            visit(collected, slot)?;
        }
    }
    Ok(())
}

fn is_done<R>(reply: Option<&Reply<R>>, number: usize) -> bool
where
    R: Command<Output = ItemResult>,
{
    let result = reply.and_then(|reply| reply.output(number));
    result.is_some_and(|result| result.status.get() == Status::Ok.raw())
}

/// How the contents of `pages` pages get from the source to the frame `pfn`.
fn item<M: DeviceMemory>(pagemap: &Pagemap<M>, source: Source, pfn: usize, pages: u32) -> DmaItem {
    match (source, pagemap.frame(pfn)) {
        (Source::Hole, Some(frame)) => Copy::clear(frame, pages),
        (Source::Folio(from), Some(frame)) => Copy::to_device(from as u64, frame, pages),
        (Source::Folio(from), None) => {
            // Only pages of this device memory are collected to be moved back; a frame
            // that is none would be refused.
            let from = pagemap.frame(from).unwrap_or(u64::MAX);
            Copy::to_system(from, pfn as u64, pages)
        }
        // Holes are only filled with device memory.
        (Source::Hole, None) => Copy::to_system(u64::MAX, pfn as u64, pages),
    }
}

/// A list of items to copy that is being written.
struct List<'l, C: Carrier> {
    carrier: &'l C,
    memory: ListMemory<C::Request>,
    /// The last item, which the next one may continue.
    last: Option<(Range<usize>, DmaItem)>,
}

impl<C: Carrier> List<'_, C> {
    /// Adds what has been lent memory of a slot.
    fn add_slot<M: DeviceMemory>(
        &mut self,
        pagemap: &Pagemap<M>,
        collected: &Collected<'_>,
        slot: Slot,
    ) -> Result {
        let mut page = 0;
        while page < 1 << slot.order {
            let index = slot.index + page;
            page += match collected.new_memory(index) {
                Some((pfn, order)) => {
                    let source = match slot.source {
                        Source::Hole => Source::Hole,
                        Source::Folio(first) => Source::Folio(first + page),
                    };
                    self.add(index, item(pagemap, source, pfn, 1 << order))?;
                    1 << order
                }
                None => 1,
            };
        }
        Ok(())
    }

    /// Adds an item for the pages from `index` on.
    fn add(&mut self, index: usize, item: DmaItem) -> Result {
        let pages = item.pages.get();
        if let Some((covered, last)) = &mut self.last {
            let moved = u64::from(last.pages.get());
            let reads = last.kind.get() != Kind::Clear.raw();
            let source = last.source.get() + if reads { moved } else { 0 };
            if covered.end == index
                && last.kind == item.kind
                && source == item.source.get()
                && last.destination.get() + moved == item.destination.get()
            {
                covered.end += pages as usize;
                last.pages = (last.pages.get() + pages).into();
                return Ok(());
            }
        }
        self.flush()?;
        self.last = Some((index..index + pages as usize, item));
        Ok(())
    }

    fn flush(&mut self) -> Result {
        if let Some((covered, item)) = self.last.take() {
            let memory = &mut self.memory;
            memory.message.push(&self.carrier.entry(&covered, item))?;
            // Within the capacity this does not allocate.
            memory.covered.push(covered, GFP_KERNEL)?;
        }
        Ok(())
    }

    /// The memory, with the list in it.
    fn finish(mut self) -> Result<ListMemory<C::Request>> {
        self.flush()?;
        Ok(self.memory)
    }
}
