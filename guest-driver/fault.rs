// SPDX-License-Identifier: GPL-2.0

//! Device faults: from the record to the answer.
//!
//! The device returns buffers of records on the fault queue. A [`Dispatcher`] sorts the records
//! into the inboxes of their spaces. Each space then resolves its faults by itself, so a process
//! with slow faults delays no other. Faults of the same region of 2 MiB are resolved together,
//! except atomic ones: each of those takes its page away from the CPUs, so none is mapped ahead.
//!
//! Does not know how pages are made present and mapped.

pub(crate) mod attempts;
pub(crate) mod map;
pub(crate) mod request;

use crate::{
    device::{
        command::Answer,
        queue::{Link, Message},
        Device,
    },
    fault::{map::PageMapper, request::FaultRequest},
    late,
    mm::{has_process, hmm::HmmRequest, observed, LockedMm, HPAGE_PMD_SIZE},
    process::Charging,
    space::{inbox::Batch, Space, Spaces},
    trace,
    uapi::late::LatePoint,
    virtio::{Chain, Draft, Handler, Written},
    wire::{
        fault::{FaultHeader, FaultRecord, Reason},
        rights, Queue,
    },
};
use kernel::{
    impl_has_work,
    mm::MmWithUser,
    new_spinlock_irq, new_work,
    page::PAGE_SIZE,
    prelude::*,
    sync::{Arc, SpinLockIrq},
    time::Delta,
    workqueue::{Work, WorkItem},
};

/// The number of buffers offered on the fault queue. Each has room for many times the faults that
/// two engines raise while one is handled.
const BUFFERS: usize = 16;

/// The size of a buffer: a page. {drv-fault-buffer-size}
const BUFFER_BYTES: usize = 4096;

/// Size, in pages, of the aligned block around a faulting page in which present pages are mapped as
/// well, for jobs that walk through memory.
const AROUND: usize = 64;

/// How far beyond the region of a fault pages are mapped ahead if the job has announced that it
/// will need them: while an engine works on one region, the next ones get ready. A larger value
/// would make pages present that a job that ends early never accesses.
const AHEAD: usize = 8 * HPAGE_PMD_SIZE;

/// Handles the buffers that come back on the fault queue.
#[pin_data]
pub(crate) struct Dispatcher {
    device: Arc<Device>,
    spaces: Arc<Spaces>,
    #[pin]
    returned: SpinLockIrq<KVec<Arc<Chain>>>,
    #[pin]
    work: Work<Dispatcher>,
}

impl_has_work! {
    impl HasWork<Self> for Dispatcher { self.work }
}

/// Passes completed chains to the dispatcher, as long as there is one.
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
                // There are no more faults in this life of the device. {drv-stale-records}
                return;
            }
            // The capacity is the number of chains.
            let _ = dispatcher.returned.lock().push_within_capacity(chain);
            dispatcher.device.core.work.with(|queue| {
                // If the work is already queued, it will find the chain.
                let _ = queue.enqueue(dispatcher.clone());
            });
        }
    }
}

/// Serves faults as long as the device has buffers for them; ends when dropped.
pub(crate) struct Serving {
    handler: Arc<FaultHandler>,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let dispatcher = self.handler.dispatcher.lock().take();
        drop(dispatcher);
    }
}

impl Serving {
    /// Offers buffers to the device on the fault queue, in a life in which it has none yet.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no memory for them.
    pub(crate) fn offer(&self, link: &Link) -> Result {
        let mut drafts = KVec::with_capacity(BUFFERS, GFP_KERNEL)?;
        for _ in 0..BUFFERS {
            let draft = Draft::new(0, BUFFER_BYTES, Some(self.handler.clone()), GFP_KERNEL)?;
            drafts.push(draft, GFP_KERNEL)?;
        }
        let dispatcher = self.handler.dispatcher.lock().clone();
        if let Some(dispatcher) = dispatcher {
            // Discard the buffers that came back in an earlier life, to make room for the new ones.
            // Their faults no longer exist.
            let mut earlier = KVec::with_capacity(BUFFERS, GFP_KERNEL)?;
            core::mem::swap(&mut *dispatcher.returned.lock(), &mut earlier);
        }
        let life = link.life();
        for draft in drafts {
            Dispatcher::offer(link, draft, life);
        }
        link.kick_queue(Queue::Fault);
        Ok(())
    }
}

impl Dispatcher {
    /// Serves the faults that come in buffers offered later.
    pub(crate) fn start(device: Arc<Device>, spaces: Arc<Spaces>) -> Result<Serving> {
        let returned = KVec::with_capacity(BUFFERS, GFP_KERNEL)?;
        let dispatcher = Arc::pin_init(
            pin_init!(Self {
                device,
                spaces,
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
        Ok(Serving { handler })
    }

    fn offer(link: &Link, draft: Draft, life: u32) {
        // The queue has room for all buffers, unless the device is given up; then there are no more
        // faults.
        if let Ok(slot) = link.queues().try_reserve_slot(Queue::Fault.raw()) {
            slot.post_in(life, draft);
        }
    }

    /// Sorts the records of a buffer into inboxes. The buffer belongs to the given life of the
    /// device. {drv-answer-every-fault}
    fn sort(&self, buffer: Written<'_>, life: u32) {
        let core = &self.device.core;
        let Some(header) = buffer.read::<FaultHeader>(0) else {
            core.link.violated_in(life);
            return;
        };
        let (begin, size) = (size_of::<FaultHeader>(), size_of::<FaultRecord>());
        let count = header.count.get() as usize;
        // {drv-check-device}
        if count == 0 || count > buffer.len().saturating_sub(begin) / size {
            core.link.violated_in(life);
            return;
        }
        core.counters.fault_batches.increment();
        core.counters.faults.add(count as u64);
        for offset in (begin..buffer.len()).step_by(size).take(count) {
            let Some(record) = buffer.read::<FaultRecord>(offset) else {
                return;
            };
            // Without a space of this life the job is about to end, or has ended: with its space,
            // whose end it reports as `Cancelled`, or with the device.
            let space = self.spaces.by_id(record.space.get());
            let Some(space) = space.filter(|space| space.life() == life) else {
                continue;
            };
            space.events().faults.increment();
            trace::fault(|| trace::Fault {
                device: core.node(),
                space: space.id(),
                job: record.job.get(),
                address: record.address.get(),
                access: record.access.get(),
                pages: record.pages.get(),
            });
            space.keep_fault(record, life);
            core.work.with(|queue| {
                // If the work is already queued, it will find the record.
                let _ = queue.enqueue(space.clone());
            });
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
            let life = chain.life();
            if let Some(buffer) = chain.reply() {
                this.sort(buffer, life);
            }
            if let Some(draft) = Draft::again(chain) {
                Self::offer(&this.device.core.link, draft, life);
            }
        }
        this.device.core.link.kick_queue(Queue::Fault);
    }
}

/// How long the kernel may keep the driver from looking at a process before its faults are
/// answered. Longer than a fault is retried, because each attempt begins with a
/// look.
const STARVED: Delta = Delta::from_secs(6);

impl WorkItem for Space {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        if this.inbox.is_empty() {
            return;
        }
        // A work item never runs twice at a time, so the batch is returned before the next is
        // taken.
        let batch = this.inbox.take();
        late::at(LatePoint::Install);
        // If there is no memory for that, the jobs end at the device's own time limit, or with the
        // file.
        if let Err(error) = Resolver::run(&this, &batch) {
            pr_debug!("faults not answered: {:?}\n", error);
        }
        this.inbox.give_back(batch);
        if !this.inbox.is_empty() {
            // Faults on pages that take long are retried.
            this.device.core.work.with(|queue| {
                // It does not matter if the work is already queued.
                let _ = queue.enqueue(this.clone());
            });
        }
    }
}

impl Space {
    /// Keeps a fault of this life of the device until it is handled.
    fn keep_fault(&self, record: FaultRecord, life: u32) {
        if self.inbox.put(record, life) {
            return;
        }
        // Some faults are of jobs that have been cancelled; the records do not tell which. Retry
        // all: the others come again. If there is no memory for that, their jobs end with the file.
        if let Ok(mut message) = answers(&self.device, self.inbox.limit(), life) {
            self.inbox.drain(|earlier| {
                // The capacity is that of the inbox.
                let _ = message.push(&Answer::retry(earlier.fault.get()));
            });
            send(&self.device, message);
        } else {
            self.inbox.clear();
        }
        self.inbox.put(record, life);
    }

    /// Answers faults if the kernel has kept the driver from looking at the process for too long,
    /// because changes overlap that do not yield. To be called periodically.
    pub(crate) fn end_starved_faults(&self) -> Result {
        if !self.notifier.is_starved(STARVED) {
            return Ok(());
        }
        let Some(life) = self.inbox.stuck(STARVED) else {
            return Ok(());
        };
        let most = self.inbox.limit().saturating_mul(2);
        let mut message = answers(&self.device, most, life)?;
        self.inbox.give_up(STARVED, life, |fault| {
            // The capacity is enough for those being resolved and those that wait.
            let _ = message.push(&Answer::terminate(fault, Reason::Busy));
        });
        let terminated = &self.device.core.counters.faults_terminated;
        terminated.add(message.count().into());
        // If the driver can look at the process after all, its later answers have no effect.
        send(&self.device, message);
        Ok(())
    }
}

/// A request that answers `count` faults of a life of the device. It is only valid in that life: in
/// another one, the numbers may belong to other faults.
fn answers(device: &Device, count: usize, life: u32) -> Result<Message<Answer>> {
    let watch = Some(device.core.watch.clone() as Arc<dyn Handler>);
    let message = Message::with_handler(0, count, 0, watch, GFP_KERNEL)?;
    Ok(message.only_in(life))
}

/// Tells the device that pages are not available.
fn terminate(device: &Device, records: &[FaultRecord], life: u32, reason: Reason) -> Result {
    let mut message = answers(device, records.len(), life)?;
    for record in records {
        message.push(&Answer::terminate(record.fault.get(), reason))?;
    }
    let terminated = &device.core.counters.faults_terminated;
    terminated.add(records.len() as u64);
    send(device, message);
    Ok(())
}

/// Sends answers, if there are any: a request without entries is not valid.
fn send(device: &Device, message: Message<Answer>) {
    if message.count() > 0 {
        // If the device is given up, so are the jobs.
        let _ = device.core.link.submit(message);
    }
}

/// Resolves faults of a space.
struct Resolver<'a> {
    space: &'a Space,
    mm: &'a MmWithUser,
    /// The life of the device that the faults belong to.
    life: u32,
    mapper: PageMapper<'a>,
}

impl<'a> Resolver<'a> {
    /// Answers all faults of a batch, which is sorted by address. {drv-answer-every-fault}
    fn run(space: &'a Space, batch: &Batch) -> Result {
        let Batch { life, records } = batch;
        let Some(mm) = observed(space.mm()).filter(|mm| has_process(mm)) else {
            return terminate(&space.device, records, *life, Reason::Gone);
        };
        let _charging = Charging::to(&mm);
        let core = &space.device.core;
        let bits = core.limits.address_bits;
        if let Err(error) = space.refusals.make_room(&core.link, space.id(), bits) {
            if error == ENOMEM {
                return terminate(&space.device, records, *life, Reason::NoMemory);
            }
            return Err(error);
        }
        let mut resolver = Resolver {
            space,
            mm: &mm,
            life: *life,
            mapper: PageMapper::new(space, &mm)?,
        };
        let region = |record: &FaultRecord| record.address.get() / HPAGE_PMD_SIZE as u64;
        let groups = || records.chunk_by(|one, other| region(one) == region(other));
        // While one fault waits for a page, all others of the batch wait as well.
        resolver.mapper.is_awaited = records.len() > 1;
        for group in groups() {
            resolver.resolve_group(group)?;
        }
        groups().for_each(|group| resolver.map_ahead(group));
        Ok(())
    }

    /// Answers faults of one region: together with what their jobs will need next or, if that is
    /// not possible, one by one.
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
                if error == EAGAIN {
                    // A program has to provide its page, which may never happen.
                    self.space.keep_fault(*record, self.life);
                    continue;
                }
                if self.space.notifier.lock().is_ended() {
                    // The job is cancelled with its space, whatever the page is.
                    continue;
                }
                let reason = self.reason(record, error);
                let record = core::slice::from_ref(record);
                terminate(&self.space.device, record, self.life, reason)?;
            }
        }
        Ok(())
    }

    /// Answers those of these faults that are not atomic.
    fn resolve_plain(&mut self, group: &[FaultRecord], ahead: bool) -> Result {
        let records = || group.iter().filter(|record| !wants_atomics(record));
        let Some(first) = records().next() else {
            return Ok(());
        };
        let mut message = answers(&self.space.device, group.len(), self.life)?;
        for record in records() {
            message.push(&Answer::retry(record.fault.get()))?;
        }
        let describe =
            |wanted: &mut FaultRequest| records().try_for_each(|record| ask(wanted, record, ahead));
        self.mapper
            .map(address(first)?, describe, &mut Some(message))?;
        Ok(())
    }

    /// Maps what the jobs of these faults will need beyond their region, as long as no other fault
    /// waits. What cannot be mapped will fault.
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
        let mut next = address.saturating_add(HPAGE_PMD_SIZE) & !(HPAGE_PMD_SIZE - 1);
        let end = (address & !(PAGE_SIZE - 1))
            .saturating_add(pages.saturating_mul(PAGE_SIZE))
            .min(next.saturating_add(AHEAD));
        let mut regions = 0_u32;
        while next < end && self.space.inbox.is_empty() {
            let describe = |wanted: &mut FaultRequest| {
                wanted.require(wanted.indices(&(next..end)), want);
                Ok(())
            };
            let Ok(outcome) = self.mapper.map_ahead(next, describe) else {
                break;
            };
            next = outcome.end;
            regions = regions.saturating_add(1);
            // A kick may cost as much as mapping a region. The further the mapped part reaches
            // ahead of the job, the longer the next kick may wait.
            if regions.is_power_of_two() {
                self.mapper.kick();
            }
        }
        self.mapper.kick();
    }

    fn resolve_atomic(&mut self, record: &FaultRecord) -> Result {
        let mut message = answers(&self.space.device, 1, self.life)?;
        message.push(&Answer::retry(record.fault.get()))?;
        self.mapper
            .map_atomic(address(record)?, &mut Some(message))?;
        Ok(())
    }

    /// Why a page is not available.
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

/// The address of a fault. The device may send any 64-bit number; one that does not fit is not an
/// address of the process.
fn address(record: &FaultRecord) -> Result<usize> {
    usize::try_from(record.address.get()).map_err(|_| EFAULT)
}

fn wants_atomics(record: &FaultRecord) -> bool {
    record.access.get() & rights::ATOMIC != 0
}

fn want(record: &FaultRecord) -> HmmRequest {
    if record.access.get() & rights::WRITE != 0 {
        HmmRequest::Write
    } else {
        HmmRequest::Read
    }
}

/// Requests the page of a fault; with `ahead` also what the job will need next, and present pages
/// nearby.
///
/// # Errors
///
/// `EFAULT` if the address lies in another VMA than the request.
fn ask(wanted: &mut FaultRequest, record: &FaultRecord, ahead: bool) -> Result {
    let index = wanted.index_of(record.address.get()).ok_or(EFAULT)?;
    let want = want(record);
    if ahead {
        let hint = (record.pages.get() as usize).max(1);
        let indices = index..index.saturating_add(hint).min(wanted.len());
        wanted.add_optional(wanted.align_out(&indices, AROUND));
        wanted.require(indices, want);
    } else {
        wanted.require(index..index.saturating_add(1), want);
    }
    Ok(())
}
