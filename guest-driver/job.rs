// SPDX-License-Identifier: GPL-2.0

//! Jobs of an open file, from submission until their results have been fetched.
//!
//! Does not know what jobs do: their descriptors are passed on unread.
//!
//! Lock order: `Fences::table` is taken last.

use crate::{
    clients::Clients,
    device::{command::Cancel, core::Core, queue::Message, Device},
    ends::{Ends, Told},
    eventfd::EventFd,
    space::Space,
    trace,
    virtio::{Chain, Draft, Handler, Written},
    wait::{Deadline, Event, Waited},
    wire::{
        command::{CancelEntry, Status},
        job::{JobDescriptor, JobReply, JobRequest},
        Queue,
    },
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    new_mutex,
    prelude::*,
    rbtree::{RBTree, RBTreeNodeReservation},
    sync::{Arc, Mutex},
    time::Delta,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// The maximum number of jobs cancelled by one request: a kilobyte of names.
const CANCEL_ENTRIES: usize = 128;

/// How long to wait for a cancelled job before checking again.
const CANCEL_AGAIN: Delta = Delta::from_millis(20);

/// How often to check: in total as long as the device may take for any request.
const CANCEL_TIMES: u32 = 1500;

/// The jobs of a file by their fences.
#[pin_data]
pub(crate) struct Fences {
    #[pin]
    table: Mutex<Table>,
    ends: Arc<Ends>,
}

struct Table {
    jobs: RBTree<u64, Job>,
    count: u32,
    next: u64,
}

/// A job whose result has not been fetched.
struct Job {
    chain: Arc<Chain>,
    /// Its name on the device.
    name: u64,
    /// Whether the device has been told, or is about to be told, to end it: only told once.
    /// {drv-cancel-once}
    is_cancelled: bool,
}

/// Called when the device returns one of the jobs that were submitted together.
struct Returned {
    core: Arc<Core>,
    space: u32,
    told: Told,
}

impl Handler for Returned {
    fn completed(&self, chain: Arc<Chain>) {
        trace::complete(|| {
            let request = JobRequest::read_from_prefix(chain.request()).ok();
            let reply = chain.reply().and_then(|reply| reply.read::<JobReply>(0));
            trace::Complete {
                device: self.core.node(),
                space: self.space,
                job: request.map_or(0, |(request, _)| request.job.get()),
                status: reply.map_or(-1, |reply| reply.status.get() as i32),
            }
        });
        self.told.completed(chain);
    }
}

/// Jobs that have been submitted.
pub(crate) struct Submitted {
    /// The fence of the first job; the others have the numbers that follow.
    pub(crate) first_fence: u64,
    /// The number of jobs.
    pub(crate) count: u32,
}

impl Fences {
    /// An empty table for a file with these ends. Its fences continue those of `before`, which the
    /// program may still know.
    pub(crate) fn new(ends: Arc<Ends>, before: Option<&Self>) -> impl PinInit<Self> {
        let next = before.map_or(1, |before| before.table.lock().next);
        pin_init!(Self {
            table <- new_mutex!(
                Table {
                    jobs: RBTree::new(),
                    count: 0,
                    next,
                },
                "Fences::table"
            ),
            ends,
        })
    }

    /// The ends of these jobs.
    pub(crate) fn ends(&self) -> &Ends {
        &self.ends
    }

    /// Submits as many of the jobs as there is room for. Signals `eventfd`, if there is one, at the
    /// end of each of them.
    ///
    /// # Errors
    ///
    /// - `EAGAIN` if there is room for none: the device has the maximum number of jobs, or the file
    ///   has the maximum number whose results have not been fetched.
    /// - `ENOMEM` if there is no memory for the first one.
    /// - `EIO` or `ENODEV` if the device is given up.
    pub(crate) fn submit(
        &self,
        clients: &Clients,
        space: &Space,
        jobs: &[JobDescriptor],
        eventfd: Option<EventFd>,
    ) -> Result<Submitted> {
        let device = &*clients.device;
        let returned = Returned {
            core: device.core.clone(),
            space: space.id(),
            told: Told::new(space.jobs.clone(), self.ends.clone(), eventfd),
        };
        let returned = Arc::new(returned, GFP_KERNEL_ACCOUNT)?;
        let mut table = self.table.lock();
        let first_fence = table.next;
        let mut count = 0_u32;
        let mut error = EAGAIN;
        for descriptor in jobs {
            if let Err(failed) = table.submit(device, space, descriptor, &returned) {
                error = failed;
                break;
            }
            count = count.saturating_add(1);
        }
        drop(table);
        space.events().jobs.add(count.into());
        if count == 0 {
            return Err(error);
        }
        device.core.link.kick_queue(Queue::Submit);
        clients.watchdog.has_job();
        Ok(Submitted { first_fence, count })
    }

    /// Waits for a job to end and fetches its result.
    ///
    /// # Errors
    ///
    /// - `ENOENT` if there is no such fence, or its result has been fetched.
    /// - `ETIME` if the time ran out, `ERESTARTSYS` if a signal arrived.
    /// - `EIO` or `ENODEV` if the device is given up.
    pub(crate) fn wait(&self, space: &Space, fence: u64, deadline: Deadline) -> Result<JobReply> {
        self.await_one(space, fence, deadline, Event::wait_interruptible)
            .map_err(|error| if error == EINTR { ERESTARTSYS } else { error })
    }

    /// Waits for a job to end and fetches its result. The wait is only interrupted if the caller is
    /// being killed.
    ///
    /// # Errors
    ///
    /// - `ENOENT` if there is no such fence, or its result has been fetched.
    /// - `EINTR` if the caller is being killed. The job then ends with the space.
    /// - `EIO` or `ENODEV` if the device is given up.
    pub(crate) fn finish(&self, space: &Space, fence: u64) -> Result<JobReply> {
        self.await_one(space, fence, Deadline::Never, Event::wait_killable)
    }

    /// Waits for one of several jobs to end, and fetches its result. Returns its fence and the
    /// result. No fences means all jobs of the file.
    ///
    /// # Errors
    ///
    /// - `ENOENT` if a fence does not exist or its result has been fetched. At first this holds for
    ///   any of the fences, during the wait only for all of them.
    /// - `ETIME` if the time ran out, `ERESTARTSYS` if a signal arrived.
    /// - `EIO` or `ENODEV` if the device is given up.
    pub(crate) fn wait_any(
        &self,
        space: &Space,
        fences: &[u64],
        deadline: Deadline,
    ) -> Result<(u64, JobReply)> {
        let ends = &self.ends;
        if !self.table.lock().has_all(fences) {
            return Err(ENOENT);
        }
        loop {
            // Before looking at the table, so that no later end is missed.
            let seen = ends.seen();
            let ended = self.table.lock().take_ended(fences, space)?;
            if let Some((fence, job)) = ended {
                ends.one_less();
                return Ok((fence, result(space, &job.chain)?));
            }
            match ends.wait(seen, deadline.left()) {
                Waited::Interrupted => return Err(ERESTARTSYS),
                Waited::TimedOut if deadline.left() == 0 => return Err(ETIME),
                Waited::Done | Waited::TimedOut => {}
            }
        }
    }

    /// Tells the device to end a job early; does not wait for that. Does nothing if the job has
    /// ended, or the device has already been told.
    ///
    /// # Errors
    ///
    /// - `ENOENT` if there is no such fence, or its result has been fetched.
    /// - `ENOMEM` if there is no memory for the request.
    /// - `EIO` or `ENODEV` if the device is given up, which has ended the job.
    pub(crate) fn cancel(&self, device: &Device, fence: u64) -> Result {
        let core = &device.core;
        let watch = Some(core.watch.clone() as Arc<dyn Handler>);
        let mut message = Message::<Cancel>::with_handler(0, 1, 0, watch, GFP_KERNEL)?;
        {
            let mut table = self.table.lock();
            let job = table.jobs.get_mut(&fence).ok_or(ENOENT)?;
            if job.is_cancelled || job.chain.is_complete() {
                return Ok(());
            }
            message.push(&CancelEntry {
                job: job.name.into(),
            })?;
            // If the device has not taken the job yet, it remembers the name. It remembers enough
            // names for a driver that uses each only once.
            job.is_cancelled = true;
        }
        core.link.submit(message)?;
        Ok(())
    }

    /// Makes the device end all jobs early that have not ended, and waits for that. Called when the
    /// file is closed.
    ///
    /// If there is no memory for that, or the device is given up, the jobs end with the space.
    pub(crate) fn cancel_all(&self, device: &Device) {
        let queues = device.core.link.queues();
        for _ in 0..CANCEL_TIMES {
            self.cancel_once(device);
            let running = {
                let table = self.table.lock();
                let mut chains = table.jobs.values().map(|job| &job.chain);
                chains.find(|chain| !chain.is_complete()).cloned()
            };
            let Some(chain) = running else { return };
            let sleep = || chain.done().wait_timeout(CANCEL_AGAIN);
            // The next round checks the chain in any case.
            let _ = queues.wait_with(Queue::Submit.raw(), &chain, sleep);
        }
    }

    fn cancel_once(&self, device: &Device) {
        let mut next = 0;
        while let Ok(mut message) = Message::<Cancel>::new(0, CANCEL_ENTRIES, 0) {
            let mut is_full = false;
            for (&fence, job) in self.table.lock().jobs.iter_mut() {
                if fence < next || job.is_cancelled || job.chain.is_complete() {
                    continue;
                }
                let entry = CancelEntry {
                    job: job.name.into(),
                };
                is_full = message.push(&entry).is_err();
                if is_full {
                    break;
                }
                job.is_cancelled = true;
                next = fence.saturating_add(1);
            }
            let is_last = !is_full || message.count() == 0;
            if message.count() > 0 && device.core.link.submit(message).is_err() {
                return;
            }
            if is_last {
                return;
            }
        }
    }

    fn await_one(
        &self,
        space: &Space,
        fence: u64,
        deadline: Deadline,
        sleep: fn(&Event, usize) -> Waited,
    ) -> Result<JobReply> {
        let chain = self.table.lock().chain_of(fence).ok_or(ENOENT)?;
        while !chain.is_complete() {
            let left = deadline.left();
            if left == 0 {
                return Err(ETIME);
            }
            // A device that no longer responds is given up, which completes the chain: see
            // `Watchdog::has_job`.
            let queues = space.device.core.link.queues();
            let sleep = || sleep(chain.done(), left);
            match queues.wait_with(Queue::Submit.raw(), &chain, sleep)? {
                Some(Waited::Interrupted) => return Err(EINTR),
                None | Some(Waited::Done | Waited::TimedOut) => {}
            }
        }
        let job = self.table.lock().remove(fence).ok_or(ENOENT)?;
        self.ends.one_less();
        result(space, &job.chain)
    }
}

/// The result of a job of a space, whose chain has completed.
///
/// # Errors
///
/// `EIO` or `ENODEV` if the device was given up before it returned the job.
fn result(space: &Space, chain: &Chain) -> Result<JobReply> {
    let link = &space.device.core.link;
    match Ending::of(space, chain) {
        Ending::Told(reply) => reply.read(0).ok_or_else(|| link.violated_in(chain.life())),
        Ending::Slept => {
            let mut reply = JobReply::new_zeroed();
            reply.status = Status::Cancelled.raw().into();
            Ok(reply)
        }
        Ending::Lost => Err(link.queues().error()),
    }
}

/// Why a job whose chain has completed has ended.
enum Ending<'c> {
    /// The device has returned it with a result.
    Told(Written<'c>),
    /// The device was reset because the system went to sleep, which cancels the job.
    Slept,
    /// The device was given up.
    Lost,
}

impl<'c> Ending<'c> {
    fn of(space: &Space, chain: &'c Chain) -> Self {
        match chain.reply() {
            Some(reply) => Self::Told(reply),
            None if space.has_slept_through(chain.life()) => Self::Slept,
            None => Self::Lost,
        }
    }
}

impl Table {
    fn chain_of(&self, fence: u64) -> Option<Arc<Chain>> {
        Some(self.jobs.get(&fence)?.chain.clone())
    }

    fn remove(&mut self, fence: u64) -> Option<Job> {
        let job = self.jobs.remove(&fence)?;
        self.count = self.count.saturating_sub(1);
        Some(job)
    }

    fn has_all(&self, fences: &[u64]) -> bool {
        fences.iter().all(|fence| self.jobs.get(fence).is_some())
    }

    /// Takes the first of these jobs that has ended, or of all jobs if none is named.
    ///
    /// # Errors
    ///
    /// - `ENOENT` if none of them exists any more.
    /// - `EIO` or `ENODEV` if it ended because the device is given up. The job stays in the table,
    ///   because the caller would not learn which one it is.
    fn take_ended(&mut self, fences: &[u64], space: &Space) -> Result<Option<(u64, Job)>> {
        let mut are_there = false;
        let mut has_ended = |job: &Job| {
            are_there = true;
            job.chain.is_complete()
        };
        let found = if fences.is_empty() {
            let mut all = self.jobs.iter();
            all.find(|(_, job)| has_ended(job)).map(|(fence, _)| *fence)
        } else {
            let mut named = fences.iter().copied();
            named.find(|fence| self.jobs.get(fence).is_some_and(&mut has_ended))
        };
        match found {
            Some(fence) => {
                let is_lost = |chain: Arc<Chain>| matches!(Ending::of(space, &chain), Ending::Lost);
                if self.chain_of(fence).is_some_and(is_lost) {
                    return Err(space.device.core.link.queues().error());
                }
                Ok(self.remove(fence).map(|job| (fence, job)))
            }
            None if are_there => Ok(None),
            None => Err(ENOENT),
        }
    }

    fn submit(
        &mut self,
        device: &Device,
        space: &Space,
        descriptor: &JobDescriptor,
        returned: &Arc<Returned>,
    ) -> Result {
        let core = &device.core;
        if self.count >= core.limits.max_jobs {
            return Err(EAGAIN);
        }
        let name = space.jobs.next_name();
        // {drv-reserved}
        let request = JobRequest {
            job: name.into(),
            space: space.id().into(),
            reserved: 0.into(),
            descriptor: *descriptor,
        };
        let handler: Arc<dyn Handler> = returned.clone();
        let mut draft = Draft::new(
            size_of::<JobRequest>(),
            // {drv-reply-room}
            size_of::<JobReply>(),
            Some(handler),
            GFP_KERNEL_ACCOUNT,
        )?;
        draft
            .request()
            .extend_from_slice(request.as_bytes(), GFP_KERNEL_ACCOUNT)?;
        let slot = core.link.queues().try_reserve_slot(Queue::Submit.raw())?;
        if slot.life() != space.life() {
            return Err(EIO);
        }
        let node = RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?;
        space.jobs.take_slot()?;
        // Nothing fails from here on.
        trace::submit(|| trace::Submit {
            device: core.node(),
            space: space.id(),
            job: name,
            operation: descriptor.operation.get(),
        });
        let job = Job {
            chain: slot.post(draft),
            name,
            is_cancelled: false,
        };
        self.jobs.insert(node.into_node(self.next, job));
        self.next = self.next.saturating_add(1);
        self.count = self.count.saturating_add(1);
        Ok(())
    }
}
