// SPDX-License-Identifier: GPL-2.0

//! Device faults: from the record to the answer.
//!
//! Buffers of records come back on the fault queue. A [`Dispatcher`] sorts the records
//! into the inboxes of their spaces; each space then resolves its faults by itself, so
//! that a process whose faults take long holds up no other. Faults of the same region of
//! 2 MiB are resolved together, but for atomic ones: each of those takes its page away from
//! the CPUs, so none is mapped ahead.
//!
//! Knows nothing of how pages are made present and mapped.

use crate::{
    command::Answer,
    device::Device,
    mapping::Installer,
    mm::{hmm::Want, LockedMm, LARGE_SIZE, PAGE_SIZE},
    queue::{Link, Message},
    space::Space,
    virtio::{Chain, Draft, Handler},
    wire::{
        fault::{FaultHeader, FaultRecord, Reason},
        rights, Queue,
    },
    wish::Wish,
};
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

/// How much of what a job says it will want is mapped before it faults there, behind the region of
/// a fault: while an engine works on one region the next ones get ready. More would make
/// present what a job that ends early never touches.
const AHEAD: usize = 8 * LARGE_SIZE;

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
        let dispatcher = self.dispatcher.lock().clone();
        if let Some(dispatcher) = dispatcher {
            if chain.reply().is_none() {
                // There are no more faults.
                dispatcher.device.given_up();
                return;
            }
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
            let reason = match self.device.core.spaces.by_id(record.space.get()) {
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
            // Without memory for that the job ends with the file.
            let _ = terminate(&self.device, &[record], reason);
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

    fn is_empty(&self) -> bool {
        self.records.lock().is_empty()
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

/// A request that answers faults, for so many of them.
fn answers(device: &Device, count: usize) -> Result<Message<Answer>> {
    let watch = Some(device.core.watch.clone() as Arc<dyn Handler>);
    Message::with_handler(0, count, 0, watch, GFP_KERNEL)
}

/// Tells the device that pages cannot be had.
fn terminate(device: &Device, records: &[FaultRecord], reason: Reason) -> Result {
    let mut message = answers(device, records.len())?;
    for record in records {
        message.push(&Answer::terminate(record.fault.get(), reason))?;
    }
    let core = &device.core;
    core.counters.faults_terminated.add(records.len() as u64);
    // If the device is given up, so are the jobs.
    let _ = core.link.submit(message);
    Ok(())
}

/// Resolves faults of a space.
struct Resolver<'a> {
    space: &'a Space,
    mm: &'a MmWithUser,
    installer: Installer<'a>,
}

impl<'a> Resolver<'a> {
    /// Answers all faults of a batch, which is sorted by address.
    fn run(space: &'a Space, batch: &[FaultRecord]) -> Result {
        let Some(mm) = space.mm().mmget_not_zero() else {
            return terminate(&space.device, batch, Reason::Gone);
        };
        let mut resolver = Resolver {
            space,
            mm: &mm,
            installer: Installer::new(space, &mm)?,
        };
        let region = |record: &FaultRecord| record.address.get() / LARGE_SIZE as u64;
        let groups = || batch.chunk_by(|one, other| region(one) == region(other));
        for group in groups() {
            resolver.resolve_group(group)?;
        }
        groups().for_each(|group| resolver.map_ahead(group));
        Ok(())
    }

    /// Answers faults of one region: together with what they are going to need next, or,
    /// if that is not possible, each alone.
    fn resolve_group(&mut self, group: &[FaultRecord]) -> Result {
        let together = self.resolve_plain(group, true).is_ok();
        for record in group {
            let resolved = if wants_atomics(record) {
                self.resolve_atomic(record)
            } else if together {
                continue;
            } else {
                self.resolve_plain(core::slice::from_ref(record), false)
            };
            if let Err(error) = resolved {
                let reason = self.reason(record, error);
                terminate(&self.space.device, core::slice::from_ref(record), reason)?;
            }
        }
        Ok(())
    }

    /// Answers the faults among these that are not atomic.
    fn resolve_plain(&mut self, group: &[FaultRecord], ahead: bool) -> Result {
        let records = || group.iter().filter(|record| !wants_atomics(record));
        let Some(first) = records().next() else {
            return Ok(());
        };
        let mut message = answers(&self.space.device, group.len())?;
        for record in records() {
            message.push(&Answer::retry(record.fault.get()))?;
        }
        let describe = |wish: &mut Wish| records().try_for_each(|record| ask(wish, record, ahead));
        self.installer
            .install(address(first)?, describe, &mut Some(message))?;
        Ok(())
    }

    /// Maps what the jobs of these faults are going to want behind their region, as long as
    /// nobody waits for something else. What cannot be mapped they will fault for.
    fn map_ahead(&mut self, group: &[FaultRecord]) {
        let plain = group.iter().filter(|record| !wants_atomics(record));
        let Some((first, pages)) = plain
            .map(|record| (record, record.pages.get() as usize))
            .max_by_key(|(_, pages)| *pages)
        else {
            return;
        };
        let Ok(address) = address(first) else {
            return;
        };
        let want = want(first);
        let mut next = address.saturating_add(LARGE_SIZE) & !(LARGE_SIZE - 1);
        let end = (address & !(PAGE_SIZE - 1))
            .saturating_add(pages.saturating_mul(PAGE_SIZE))
            .min(next.saturating_add(AHEAD));
        let mut regions = 0_u32;
        while next < end && self.space.inbox.is_empty() {
            let describe = |wish: &mut Wish| {
                wish.want(wish.places(&(next..end)), want);
                Ok(())
            };
            let Ok(installed) = self.installer.install_ahead(next, describe) else {
                break;
            };
            next = installed.end;
            regions += 1;
            // A kick may cost as much as a region. The more the job has in front of it, the
            // longer the next ones may wait.
            if regions.is_power_of_two() {
                self.installer.tell();
            }
        }
        self.installer.tell();
    }

    fn resolve_atomic(&mut self, record: &FaultRecord) -> Result {
        let mut message = answers(&self.space.device, 1)?;
        message.push(&Answer::retry(record.fault.get()))?;
        self.installer
            .install_atomic(address(record)?, &mut Some(message))?;
        Ok(())
    }

    /// Why a page cannot be had.
    fn reason(&self, record: &FaultRecord, error: Error) -> Reason {
        let is_mapped =
            || address(record).is_ok_and(|at| LockedMm::new(self.mm).lookup(at).is_some());
        if error == ENOMEM {
            Reason::NoMemory
        } else if error == EHWPOISON {
            Reason::Poisoned
        } else if error == EBUSY {
            Reason::Busy
        } else if error == ESRCH {
            Reason::Gone
        } else if is_mapped() {
            Reason::Denied
        } else {
            Reason::Unmapped
        }
    }
}

/// The address of a fault. Any 64-bit number may come: only what fits can be the process's.
fn address(record: &FaultRecord) -> Result<usize> {
    usize::try_from(record.address.get()).map_err(|_| EFAULT)
}

fn wants_atomics(record: &FaultRecord) -> bool {
    record.access.get() & rights::ATOMIC != 0
}

fn want(record: &FaultRecord) -> Want {
    if record.access.get() & rights::WRITE != 0 {
        Want::Write
    } else {
        Want::Read
    }
}

/// Asks for the page of a fault; with `ahead` also for what the job is going to need next,
/// and for what is near and present anyway.
///
/// # Errors
///
/// `EFAULT` if it lies in another memory area than those that the wish is for.
fn ask(wish: &mut Wish, record: &FaultRecord, ahead: bool) -> Result {
    let place = wish.place(record.address.get()).ok_or(EFAULT)?;
    let want = want(record);
    if ahead {
        let hint = (record.pages.get() as usize).max(1);
        let places = place..place.saturating_add(hint).min(wish.len());
        wish.welcome(wish.widened(&places, AROUND));
        wish.want(places, want);
    } else {
        wish.want(place..place + 1, want);
    }
    Ok(())
}
