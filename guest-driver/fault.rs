// SPDX-License-Identifier: GPL-2.0

//! Device faults: from the record to the mapping.
//!
//! Buffers of records come back on the fault queue. A [`Dispatcher`] sorts the records
//! into the inboxes of their spaces; each space then resolves its faults by itself, so
//! that a process whose faults take long holds up no other. Faults of the same region of
//! 2 MiB are resolved together.
//!
//! Knows nothing of how pages move, but for one call: a page in device memory that must
//! be written and is shared after a fork is sent home first.

use crate::{
    command::{Answer, Frame, Map},
    device::Device,
    mapped::Region,
    migrate,
    mm::{
        hmm::{Committed, Pages, Want},
        migrate::{large_range, page_range},
        LockedMm, LARGE_ORDER, LARGE_PAGES, LARGE_SIZE, PAGE_SHIFT, PAGE_SIZE,
    },
    queue::{Link, Message},
    space::{Mapper, Space},
    virtio::{Chain, Draft, Handler},
    wire::{
        fault::{FaultHeader, FaultRecord, Reason},
        rights, Queue,
    },
};
use core::ops::Range;
use kernel::{
    impl_has_work,
    mm::MmWithUser,
    new_mutex, new_spinlock_irq, new_work,
    prelude::*,
    sync::{Arc, Mutex, SpinLockIrq},
    workqueue::{Work, WorkItem},
};
use zerocopy::FromBytes;

/// How many buffers are offered on the fault queue. Each takes as many faults as two
/// engines raise while one is handled, many times over.
const BUFFERS: usize = 16;

/// The size of a buffer: a page.
const BUFFER_BYTES: usize = 4096;

/// Pages around one that faulted that are mapped with it if they are present: for those
/// who walk through memory.
const AROUND: usize = 64;

/// How often a fault is resolved anew because the process changed its mappings.
const ATTEMPTS: u32 = 64;

/// How long the kernel may wait for changes by others in one attempt, in milliseconds.
const PATIENCE: u32 = 1000;

/// Takes the buffers that come back on the fault queue.
#[pin_data]
pub(crate) struct Dispatcher {
    device: Arc<Device>,
    #[pin]
    returned: SpinLockIrq<KVec<Arc<Chain>>>,
    #[pin]
    work: Work<Dispatcher>,
}

impl_has_work! {
    impl HasWork<Self> for Dispatcher { self.work }
}

/// Passes what completes on to the dispatcher, as long as there is one.
#[pin_data]
pub(crate) struct FaultHandler {
    #[pin]
    dispatcher: SpinLockIrq<Option<Arc<Dispatcher>>>,
}

impl Handler for FaultHandler {
    fn completed(&self, chain: Arc<Chain>) {
        if chain.reply().is_none() {
            // The device is given up: there are no more faults.
            return;
        }
        let dispatcher = self.dispatcher.lock().clone();
        if let Some(dispatcher) = dispatcher {
            // There is room for all chains that there are.
            let _ = dispatcher.returned.lock().push_within_capacity(chain);
            dispatcher.device.core.work.with(|queue| {
                // If it is on its way already, it will find the chain.
                let _ = queue.enqueue(dispatcher.clone());
            });
        }
    }
}

/// Faults are being served; ends when dropped.
pub(crate) struct Serving(Arc<FaultHandler>);

impl Drop for Serving {
    fn drop(&mut self) {
        let dispatcher = self.0.dispatcher.lock().take();
        drop(dispatcher);
    }
}

impl Dispatcher {
    /// Offers buffers on the fault queue and serves the faults that come.
    pub(crate) fn start(device: Arc<Device>) -> Result<Serving> {
        let returned = KVec::with_capacity(BUFFERS, GFP_KERNEL)?;
        let core = device.core.clone();
        let dispatcher = Arc::pin_init(
            pin_init!(Self {
                device,
                returned <- new_spinlock_irq!(returned, "Dispatcher::returned"),
                work <- new_work!("Dispatcher::work"),
            }),
            GFP_KERNEL,
        )?;
        let handler = Arc::pin_init(
            pin_init!(FaultHandler {
                dispatcher <- new_spinlock_irq!(Some(dispatcher), "FaultHandler::dispatcher"),
            }),
            GFP_KERNEL,
        )?;
        let serving = Serving(handler.clone());
        for _ in 0..BUFFERS {
            let draft = Draft::new(0, BUFFER_BYTES, Some(handler.clone()), GFP_KERNEL)?;
            Self::offer(&core.link, draft);
        }
        core.link.queues().kick(Queue::Fault.raw());
        Ok(serving)
    }

    fn offer(link: &Link, draft: Draft) {
        // There is room for all buffers, unless the device is given up; then there are no
        // more faults.
        if let Ok(room) = link.queues().try_room(Queue::Fault.raw()) {
            room.post(draft);
        }
    }

    /// Sorts the records of a buffer into inboxes.
    fn sort(&self, buffer: &[u8]) {
        let core = &self.device.core;
        let Ok((header, rest)) = FaultHeader::read_from_prefix(buffer) else {
            core.link.violated();
            return;
        };
        let size = size_of::<FaultRecord>();
        let count = header.count.get() as usize;
        if count == 0 || count > rest.len() / size {
            core.link.violated();
            return;
        }
        core.counters.fault_batches.increment();
        core.counters.faults.add(count as u64);
        for bytes in rest.chunks_exact(size).take(count) {
            let Ok(record) = FaultRecord::read_from_bytes(bytes) else {
                return;
            };
            let reason = match self.device.spaces.by_id(record.space.get()) {
                None => Reason::Gone,
                Some(space) => match space.inbox.put(record, core.limits.max_jobs) {
                    Ok(()) => {
                        core.work.with(|queue| {
                            // If it is on its way already, it will find the record.
                            let _ = queue.enqueue(space.clone());
                        });
                        continue;
                    }
                    Err(Full::NoMemory) => Reason::NoMemory,
                    Err(Full::TooMany) => {
                        core.link.violated();
                        return;
                    }
                },
            };
            if let Ok(mut answers) = Answers::new(&self.device, 1) {
                answers.terminate(&record, reason);
                answers.send();
            }
        }
    }
}

impl WorkItem for Dispatcher {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        loop {
            let chain = this.returned.lock().pop();
            let Some(chain) = chain else {
                break;
            };
            if let Some(buffer) = chain.reply() {
                this.sort(buffer);
            }
            if let Some(draft) = Draft::again(chain) {
                Self::offer(&this.device.core.link, draft);
            }
        }
        this.device.core.link.queues().kick(Queue::Fault.raw());
    }
}

/// The faults of a space that have not been looked at, sorted by address.
#[pin_data]
pub(crate) struct Inbox {
    #[pin]
    records: Mutex<KVec<FaultRecord>>,
}

enum Full {
    NoMemory,
    /// More than there can be jobs.
    TooMany,
}

impl Inbox {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            records <- new_mutex!(KVec::new(), "Inbox::records"),
        })
    }

    fn put(&self, record: FaultRecord, limit: u32) -> Result<(), Full> {
        let mut records = self.records.lock();
        if records.len() >= limit as usize {
            return Err(Full::TooMany);
        }
        records.reserve(1, GFP_KERNEL).map_err(|_| Full::NoMemory)?;
        let address = record.address.get();
        let place = records.partition_point(|other| other.address.get() <= address);
        records
            .insert_within_capacity(place, record)
            .map_err(|_| Full::NoMemory)
    }

    fn take(&self) -> KVec<FaultRecord> {
        core::mem::take(&mut *self.records.lock())
    }
}

impl WorkItem for Space {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let batch = this.inbox.take();
        if batch.is_empty() {
            return;
        }
        // Without memory for that the jobs end by the device's own bound, or with the file.
        if let Err(error) = Resolver::run(&this, &batch) {
            pr_debug!("faults not answered: {:?}\n", error);
        }
    }
}

/// Answers that are being collected.
struct Answers<'a> {
    device: &'a Device,
    message: Message<Answer>,
    terminated: u64,
}

impl<'a> Answers<'a> {
    fn new(device: &'a Device, count: usize) -> Result<Self> {
        Ok(Self {
            device,
            message: Message::with_handler(
                0,
                count,
                0,
                Some(device.core.watch.clone()),
                GFP_KERNEL,
            )?,
            terminated: 0,
        })
    }

    fn retry(&mut self, record: &FaultRecord) {
        // There is room for an answer to each record of the batch.
        let _ = self.message.push(&Answer::retry(record.fault.get()));
    }

    fn terminate(&mut self, record: &FaultRecord, reason: Reason) {
        self.terminated += 1;
        let _ = self
            .message
            .push(&Answer::terminate(record.fault.get(), reason));
    }

    fn send(self) {
        let core = &self.device.core;
        core.counters.faults_terminated.add(self.terminated);
        if self.message.count() > 0 {
            // If the device is given up, so are the jobs.
            let _ = core.link.submit(self.message);
        }
    }
}

/// Whether a fault could be resolved.
enum Outcome {
    /// It has been answered.
    Answered,
    /// It cannot be, for this reason.
    Impossible(Reason),
}

/// Resolves faults of a space.
struct Resolver<'a> {
    space: &'a Space,
    mm: &'a MmWithUser,
    pages: Pages,
}

impl<'a> Resolver<'a> {
    /// Answers all faults of a batch, which is sorted by address.
    fn run(space: &'a Space, batch: &[FaultRecord]) -> Result {
        let Some(mm) = space.mm().mmget_not_zero() else {
            let mut answers = Answers::new(&space.device, batch.len())?;
            for record in batch {
                answers.terminate(record, Reason::Gone);
            }
            answers.send();
            return Ok(());
        };
        let mut resolver = Resolver {
            space,
            mm: &mm,
            pages: Pages::new(LARGE_PAGES)?,
        };
        let region = |record: &FaultRecord| record.address.get() / LARGE_SIZE as u64;
        for group in batch.chunk_by(|one, other| region(one) == region(other)) {
            resolver.resolve_group(group)?;
        }
        Ok(())
    }

    /// Answers faults of one region: together with what they are going to need next, or,
    /// if that is not possible, each alone.
    fn resolve_group(&mut self, group: &[FaultRecord]) -> Result {
        if let Outcome::Answered = self.resolve(group, true)? {
            return Ok(());
        }
        for record in group {
            let record = core::slice::from_ref(record);
            if let Outcome::Impossible(reason) = self.resolve(record, false)? {
                let mut answers = Answers::new(&self.space.device, 1)?;
                answers.terminate(&record[0], reason);
                answers.send();
            }
        }
        Ok(())
    }

    fn resolve(&mut self, group: &[FaultRecord], ahead: bool) -> Result<Outcome> {
        let Some(first) = group.first() else {
            return Ok(Outcome::Answered);
        };
        // Any 64-bit number may come: only what fits can be the process's.
        let Ok(address) = usize::try_from(first.address.get()) else {
            return Ok(Outcome::Impossible(Reason::Unmapped));
        };
        for _ in 0..ATTEMPTS {
            let wish = match Wish::new(self.mm, address, group, ahead) {
                Ok(wish) => wish,
                Err(reason) => return Ok(Outcome::Impossible(reason)),
            };
            match self.attempt(group, &wish)? {
                Attempt::Answered => return Ok(Outcome::Answered),
                Attempt::Impossible(reason) => return Ok(Outcome::Impossible(reason)),
                Attempt::Changed => self.space.device.core.counters.fault_retries.increment(),
                Attempt::Shared(address) => {
                    // A write needs a copy of its own, which only the kernel makes, and
                    // only of ordinary memory.
                    migrate::bring_home(&self.space.device, self.mm, page_range(address))?;
                }
            }
        }
        Ok(Outcome::Impossible(Reason::Busy))
    }

    fn attempt(&mut self, group: &[FaultRecord], wish: &Wish) -> Result<Attempt> {
        let device = &*self.space.device;
        let core = &device.core;
        // All that may take memory or time comes before the lock.
        let watch = Some(core.watch.clone() as Arc<dyn Handler>);
        let mut map =
            Message::<Map>::with_handler(self.space.id(), LARGE_PAGES, 0, watch, GFP_KERNEL)?;
        let mut answers = Answers::new(device, group.len())?;
        let mut region = Region::around(wish.window.start)?;

        let snapshot = self.space.interval.fault(
            self.mm,
            wish.window.clone(),
            device.pagemap.owner(),
            PATIENCE,
            &mut self.pages,
            |index| wish.want(index),
        );
        let snapshot = match snapshot {
            Ok(snapshot) => snapshot,
            Err(error) if error == EBUSY => return Ok(Attempt::Changed),
            Err(error) => return Ok(Attempt::Impossible(wish.reason(self.mm, error))),
        };
        // Not before the range fault, which may itself need room: it moves pages.
        let map_room = core.link.room::<Map>()?;
        let answer_room = core.link.room::<Answer>()?;
        let Ok(mut committed) = snapshot.commit() else {
            return Ok(Attempt::Changed);
        };
        if committed.state().is_ended() {
            return Ok(Attempt::Impossible(Reason::Gone));
        }

        for record in group {
            let index = wish.index(record);
            let Some(page) = committed.page(index) else {
                return Ok(Attempt::Impossible(Reason::Unmapped));
            };
            if page.pfn().is_none() {
                return Ok(Attempt::Impossible(Reason::Denied));
            }
            if wants_write(record) && !page.is_writable() {
                return Ok(Attempt::Shared(wish.window.start + (index << PAGE_SHIFT)));
            }
            answers.retry(record);
        }
        let mapped = write_map(device, &committed, wish, &mut map, &mut region)?;
        let leftover = committed.state().record(region);
        // The lock is held until both are in the ring: the `Unmap` of any later change
        // comes behind them.
        core.link.post(map_room, map);
        core.link.post(answer_room, answers.message);
        drop(committed);
        drop(leftover);
        core.link.kick::<Map>();
        core.counters.fault_pages.add(mapped);
        Ok(Attempt::Answered)
    }
}

/// How one attempt to resolve faults went.
enum Attempt {
    Answered,
    Impossible(Reason),
    /// The process has changed its mappings meanwhile.
    Changed,
    /// The page at this address must be written, but is shared with another process and
    /// in device memory.
    Shared(usize),
}

fn wants_write(record: &FaultRecord) -> bool {
    record.access.get() & (rights::WRITE | rights::ATOMIC) != 0
}

/// What of a region is to be mapped.
struct Wish {
    /// The part of the region that lies in the same memory area.
    window: Range<usize>,
    /// The page that faulted first.
    address: usize,
    /// What is asked of each page of the window.
    pages: [Want; LARGE_PAGES],
    /// Which pages of the window are to be mapped if they are present.
    around: Option<Range<usize>>,
    /// Somebody wants to write.
    write: bool,
}

impl Wish {
    fn new(
        mm: &MmWithUser,
        address: usize,
        group: &[FaultRecord],
        ahead: bool,
    ) -> Result<Self, Reason> {
        let locked = LockedMm::new(mm);
        let vma = locked.lookup(address).ok_or(Reason::Unmapped)?;
        let window = vma.clip(&large_range(address));
        drop(locked);

        let mut wish = Self {
            address,
            pages: [Want::Look; LARGE_PAGES],
            around: None,
            write: false,
            window,
        };
        let count = wish.window.len() >> PAGE_SHIFT;
        for record in group {
            let index = wish.index(record);
            if index >= count {
                // It lies in another area: this one is resolved alone.
                return Err(Reason::Unmapped);
            }
            let want = if wants_write(record) {
                wish.write = true;
                Want::Write
            } else {
                Want::Read
            };
            let hint = if ahead {
                record.pages.get() as usize
            } else {
                1
            };
            let end = index.saturating_add(hint.max(1)).min(count);
            for page in &mut wish.pages[index..end] {
                if *page != Want::Write {
                    *page = want;
                }
            }
            if ahead {
                let base = wish.window.start >> PAGE_SHIFT;
                let start = ((base + index) / AROUND * AROUND).max(base) - base;
                let end = ((base + end).next_multiple_of(AROUND) - base).min(count);
                wish.around = Some(match wish.around.take() {
                    Some(around) => around.start.min(start)..around.end.max(end),
                    None => start..end,
                });
            }
        }
        Ok(wish)
    }

    /// The place of a fault in the window; beyond its end if it lies elsewhere.
    fn index(&self, record: &FaultRecord) -> usize {
        let address = record.address.get();
        let offset = address.wrapping_sub(self.window.start as u64);
        (offset >> PAGE_SHIFT).min(usize::MAX as u64) as usize
    }

    fn want(&self, index: usize) -> Want {
        self.pages.get(index).copied().unwrap_or(Want::Look)
    }

    fn is_wanted(&self, index: usize) -> bool {
        let is_near = |around: &Range<usize>| around.contains(&index);
        self.want(index) != Want::Look || self.around.as_ref().is_some_and(is_near)
    }

    /// Why the pages cannot be had.
    fn reason(&self, mm: &MmWithUser, error: Error) -> Reason {
        if error == ENOMEM {
            Reason::NoMemory
        } else if error == EHWPOISON {
            Reason::Poisoned
        } else if LockedMm::new(mm).lookup(self.address).is_none() {
            Reason::Unmapped
        } else {
            Reason::Denied
        }
    }
}

/// Writes what is to be mapped; returns how many pages that is.
fn write_map(
    device: &Device,
    committed: &Committed<'_, Mapper>,
    wish: &Wish,
    map: &mut Message<Map>,
    region: &mut Region,
) -> Result<u64> {
    let place = |pfn: usize| match device.pagemap.frame(pfn) {
        Some(frame) => Frame::Device(frame),
        None => Frame::System(pfn as u64),
    };
    if let Some((pfn, write)) = large(committed, wish) {
        if let Some(page) = committed.page(0).filter(|_| write) {
            page.mark_dirty();
        }
        let pages = LARGE_PAGES as u32;
        region.add(wish.window.start, LARGE_PAGES);
        map.push(&Map::entry(
            wish.window.start,
            place(pfn),
            pages,
            true,
            write,
        ))?;
        return Ok(u64::from(pages));
    }

    let mut mapped = 0;
    // A run of pages that can be mapped by one entry: its first address, frame and
    // whether it may be written, and how many pages it has.
    let mut run: Option<(usize, Frame, bool, u32)> = None;
    for index in 0..committed.len() {
        let found = committed.page(index).filter(|_| wish.is_wanted(index));
        let Some((page, pfn)) = found.and_then(|page| Some((page, page.pfn()?))) else {
            continue;
        };
        let write = wish.write && page.is_writable();
        if write {
            page.mark_dirty();
        }
        mapped += 1;
        let address = wish.window.start + (index << PAGE_SHIFT);
        region.add(address, 1);
        let frame = place(pfn);
        run = match run {
            Some((start, first, rights, pages))
                if address == start + pages as usize * PAGE_SIZE
                    && frame == first.after(pages.into())
                    && rights == write =>
            {
                Some((start, first, rights, pages + 1))
            }
            other => {
                if let Some((start, first, rights, pages)) = other {
                    map.push(&Map::entry(start, first, pages, false, rights))?;
                }
                Some((address, frame, write, 1))
            }
        };
    }
    if let Some((start, first, rights, pages)) = run {
        map.push(&Map::entry(start, first, pages, false, rights))?;
    }
    Ok(mapped)
}

/// The frame number of a large page that fills the window, and whether it is to be mapped
/// so that it can be written.
fn large(committed: &Committed<'_, Mapper>, wish: &Wish) -> Option<(usize, bool)> {
    if committed.len() != LARGE_PAGES {
        return None;
    }
    let head = committed.page(0)?;
    let pfn = head.pfn()?;
    let is_large = head.order() >= LARGE_ORDER && pfn % LARGE_PAGES == 0;
    is_large.then(|| (pfn, wish.write && head.is_writable()))
}
