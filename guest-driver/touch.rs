// SPDX-License-Identifier: GPL-2.0

//! Pages in device memory that a CPU touches: they come back, and some around them with them.
//!
//! Somebody waits. A small page is taken away from the device and copied by one request. The
//! more of what lies around touched pages comes with them, the more is brought next time; what
//! is touched now and then comes alone, so that the device keeps what is around it.
//!
//! Knows nothing of why pages are on the device.

use crate::{
    command::{fetch_entry, Fetch, LongFetch},
    device::Core,
    migrate::{fill_system, Tally},
    mm::{
        interval::OwnMove,
        migrate::{large_range, Collected, LockedFolio, Size, Slot, Source},
        pagemap::{CpuFault, DeviceMemory, Lost, Pagemap, UnusedFrames},
        LockedVma, PAGE_SHIFT, PAGE_SIZE,
    },
    pipeline::count,
    queue::{Command, Link, Message, Sent},
    space::{Mapper, Space},
    transfer::{Carrier, Memory, Plain, Spares, Transfer},
    wire::{
        command::{FetchEntry, MAX_FETCH_PAGES},
        dma::{DmaItem, ItemResult},
    },
};
use core::{marker::PhantomData, ops::Range};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc,
    },
    time::{Instant, Monotonic},
};

/// The most pages that come with a touched one, and itself: as many as one [`Fetch`] can be
/// about. From there on, a touch costs what its pages cost, and hardly more.
const MOST: u32 = MAX_FETCH_PAGES as u32;

/// How many it is in a process that is not bound to the device, of which nothing is known: a
/// child, say, that its parent's pages came to by a fork.
const UNBOUND: u32 = 16;

/// By what the number of pages grows and shrinks.
const STEP: u32 = 8;

/// After so many milliseconds without a touch, the next one has nothing to do with it.
const PAUSE: i64 = 10;

/// The memory of a device, as the page map sees it.
pub(crate) struct Store {
    core: Arc<Core>,
}

impl Store {
    pub(crate) fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

impl DeviceMemory for Store {
    fn freed(&self, frames: UnusedFrames) {
        self.core.give_back(frames);
    }

    fn migrate_to_ram(&self, pagemap: &Pagemap<Self>, fault: CpuFault<'_>) -> Result<(), Lost> {
        touched(&self.core, pagemap, &fault)
    }
}

/// The small pages that CPUs touch in one process.
#[pin_data]
pub(crate) struct Touches {
    /// How many a touch brings.
    pages: Atomic<u32>,
    /// When the last one was brought, in milliseconds.
    last: Atomic<i64>,
    begun: Instant<Monotonic>,
    #[pin]
    spares: Spares<Fetch>,
}

impl Touches {
    pub(crate) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            pages: Atomic::new(1),
            last: Atomic::new(0),
            begun: Instant::now(),
            // Threads that touch pages at the same time get memory anew.
            spares <- Spares::new(1, MOST as usize),
        })
    }

    fn now(&self) -> i64 {
        self.begun.elapsed().as_millis()
    }

    /// How many this time: a power of two.
    fn pages(&self) -> u32 {
        if self.now() - self.last.load(Relaxed) > PAUSE {
            self.pages.store(1, Relaxed);
        }
        self.pages.load(Relaxed)
    }

    /// Of so many, so many were on the device.
    fn learn(&self, pages: u32, moved: u32) {
        // If several threads touch pages, each of them knows as much.
        let next = if moved * 2 >= pages {
            (pages * STEP).min(MOST)
        } else {
            (pages / STEP).max(1)
        };
        self.pages.store(next, Relaxed);
        self.last.store(self.now(), Relaxed);
    }
}

/// Copies pages to the guest's memory that the device loses by the same request, an `R`.
struct Home<'a, R> {
    space: &'a Space,
    /// The addresses of what is collected.
    range: Range<usize>,
    /// None if the device has lost the pages when they were collected.
    mover: Option<OwnMove<'a, Mapper>>,
    _request: PhantomData<R>,
}

impl<'a, R> Home<'a, R> {
    /// For pages of a range of a space that are to be collected next.
    fn new(space: &'a Space, range: Range<usize>) -> Self {
        Self {
            space,
            range,
            mover: space.interval.move_by_caller(),
            _request: PhantomData,
        }
    }

    fn addresses(&self, places: &Range<usize>) -> Range<usize> {
        let start = self.range.start;
        start + (places.start << PAGE_SHIFT)..start + (places.end << PAGE_SHIFT)
    }
}

impl<R> Carrier for Home<'_, R>
where
    R: Command<Entry = FetchEntry, Output = ItemResult>,
{
    type Request = R;

    fn entry(&self, places: &Range<usize>, item: DmaItem) -> FetchEntry {
        fetch_entry(self.addresses(places).start, &item)
    }

    fn send(
        &self,
        link: &Link,
        message: Message<R>,
        places: &[Range<usize>],
    ) -> Result<Option<Sent<R>>> {
        let Ok(room) = link.room::<R>() else {
            return Ok(None);
        };
        let mut mapped = self.space.interval.lock();
        if mapped.is_ended() {
            // The device may use the pages until it says that the space is ended. Whoever
            // touches them again finds no space, and is in nobody's way.
            return Err(EAGAIN);
        }
        // Not when it is done: what is mapped there meanwhile must be kept in mind. Until then
        // the mover says that the device may have the pages.
        for places in places {
            mapped.forget(&self.addresses(places));
        }
        if let Some(mover) = &self.mover {
            mover.tell(&mut mapped, self.range.clone());
        }
        let sent = link.post(room, message);
        drop(mapped);
        link.kick::<R>();
        Ok(Some(sent))
    }
}

/// Brings back the page that a CPU has touched.
fn touched(core: &Core, pagemap: &Pagemap<Store>, fault: &CpuFault<'_>) -> Result<(), Lost> {
    if fault.is_within_folio() {
        return fault.split(pagemap).map_err(|_| Lost::NoMemory);
    }
    let space = core.spaces.of(fault.vma().address_space());
    if fault.is_large() {
        large_touched(core, pagemap, fault, space.as_deref())
    } else {
        small_touched(core, pagemap, fault, space.as_deref())
    }
}

fn small_touched(
    core: &Core,
    pagemap: &Pagemap<Store>,
    fault: &CpuFault<'_>,
    space: Option<&Space>,
) -> Result<(), Lost> {
    let pages = space.map_or(UNBOUND, |space| space.touches.pages());
    let bytes = pages as usize * PAGE_SIZE;
    let start = fault.address() & !(bytes - 1);
    let visit = Visit {
        core,
        pagemap,
        fault,
        range: fault.vma().clip(&(start..start + bytes)),
        size: Size::Small,
        divides: false,
    };
    let Some(space) = space else {
        return visit.fetch(&Plain, &core.spares, 0).map(drop);
    };
    let touches = &space.touches;
    let home = Home::<Fetch>::new(space, visit.range.clone());
    let fetched = visit.fetch(&home, &touches.spares, space.id())?;
    touches.learn(pages, fetched as u32);
    Ok(())
}

fn large_touched(
    core: &Core,
    pagemap: &Pagemap<Store>,
    fault: &CpuFault<'_>,
    space: Option<&Space>,
) -> Result<(), Lost> {
    let range = large_range(fault.address());
    let still = space
        .map(|space| space.interval.keep_still(range.clone()))
        .transpose()
        .map_err(|_| Lost::NoMemory)?;
    let exclusive = fault.is_exclusive();
    // A page that others have, too, is in small pieces before it moves: while it moves as a
    // whole, who loses it spoils its counts (`mm::migrate`).
    if let (Some(still), false) = (&still, exclusive) {
        if fault
            .split_large(pagemap, still)
            .map_err(|_| Lost::NoMemory)?
        {
            return Ok(());
        }
    }
    let visit = Visit {
        core,
        pagemap,
        fault,
        range,
        size: Size::Whole,
        divides: exclusive,
    };
    let Some(space) = space else {
        return visit.fetch(&Plain, &core.spares, 0).map(drop);
    };
    let home = Home::<LongFetch>::new(space, visit.range.clone());
    visit.fetch(&home, &core.touch_spares, space.id()).map(drop)
}

/// A page that a CPU has touched, and what is to come with it.
struct Visit<'v, 'f> {
    core: &'v Core,
    pagemap: &'v Pagemap<Store>,
    fault: &'v CpuFault<'f>,
    range: Range<usize>,
    size: Size,
    /// Whether a large page may come home in small ones: only if no other process has it, see
    /// [`Collected::fill_split`].
    divides: bool,
}

impl Visit<'_, '_> {
    /// Brings back the page, and what else is in device memory of the range, by requests about
    /// a space, zero if about none. Tells how many pages.
    fn fetch<C: Carrier>(
        &self,
        carrier: &C,
        spares: &Spares<C::Request>,
        space: u32,
    ) -> Result<u64, Lost> {
        let Self {
            core,
            pagemap,
            fault,
            size,
            divides,
            ..
        } = *self;
        let start = self.range.start;
        let memory = spares.take(space, self.range.len() >> PAGE_SHIFT);
        let Memory { scratch, list } = memory.map_err(|_| Lost::NoMemory)?;
        let collecting = core.counters.collect_nanoseconds.time();
        let Ok(collected) = fault.collect(pagemap, self.range.clone(), size, scratch) else {
            return Err(Lost::Contents);
        };
        drop(collecting);

        let index = (fault.address() - start) >> PAGE_SHIFT;
        let is_touched = |slot: Slot| (slot.index..slot.index + (1 << slot.order)).contains(&index);
        let mut wanted = None;
        let lending = core.counters.lend_nanoseconds.time();
        let near = (fault.vma(), start);
        let begun = Transfer::begin(
            core,
            carrier,
            pagemap,
            collected,
            list,
            |collected, slot| {
                let filled = fill_touched(core, collected, slot, near, divides)?;
                if is_touched(slot) && slot.source != Source::Hole {
                    wanted = filled.then_some(slot);
                    if !filled {
                        return Err(ENOMEM);
                    }
                }
                Ok(filled)
            },
        );
        let transfer = match begun {
            Ok(transfer) => transfer,
            // It will be touched again.
            Err(error) if error == EAGAIN => return Ok(0),
            Err(_) => return Err(Lost::NoMemory),
        };
        drop(lending);
        let copying = core.counters.copy_nanoseconds.time();
        let (collected, list) = transfer.end_or_stay().map_err(|_| Lost::Contents)?;
        drop(copying);
        if wanted.is_some_and(|slot| !collected.is_filled(slot.index)) {
            return Err(Lost::Contents);
        }
        // If the page could not be collected or committed, somebody else has to do with it at
        // the moment: it will be touched again.
        let committing = core.counters.commit_nanoseconds.time();
        let committed = collected.commit();
        drop(committing);
        let mut tally = Tally::default();
        count(&committed, &mut tally);
        let finalising = core.counters.finalise_nanoseconds.time();
        let scratch = committed.finish();
        drop(finalising);
        core.counters.pages_touched.add(tally.moved);
        core.counters.large_to_system.add(tally.large);
        spares.keep(scratch, list);
        Ok(tally.moved)
    }
}

/// Lends ordinary memory to a slot of pages that a CPU waits for, as a whole or, if it `divides`,
/// in small pages.
fn fill_touched(
    core: &Core,
    collected: &mut Collected<'_>,
    slot: Slot,
    (vma, start): (LockedVma<'_>, usize),
    divides: bool,
) -> Result<bool> {
    if fill_system(core, collected, slot, Some((vma, start)))? {
        return Ok(true);
    }
    if slot.order == 0 {
        return Ok(false);
    }
    if !divides {
        return fill_system(core, collected, slot, None);
    }
    let first = start + (slot.index << PAGE_SHIFT);
    collected.fill_split(slot, |page| {
        LockedFolio::system(0, Some((vma, first + (page << PAGE_SHIFT))))
    })
}
