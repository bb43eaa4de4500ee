// SPDX-License-Identifier: GPL-2.0

//! Jobs of an open file, from submission until their results have been fetched.
//!
//! Knows nothing of what jobs do: their descriptors pass through unread.
//!
//! Lock order: `Fences::table` is taken last.

use crate::{
    device::Device,
    space::Space,
    virtio::{Chain, Draft, Handler},
    wait::{Event, Waited},
    wire::{
        job::{JobDescriptor, JobReply, JobRequest},
        Queue,
    },
};
use kernel::{
    new_mutex,
    prelude::*,
    rbtree::{RBTree, RBTreeNodeReservation},
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, Mutex,
    },
    time::msecs_to_jiffies,
};
use zerocopy::{FromBytes, IntoBytes};

/// How long a job is waited for until the device is asked whether it still lives, in
/// milliseconds.
const CHECK_INTERVAL: u32 = 10_000;

/// Gives each job of a device a name of its own.
pub(crate) struct Names(Atomic<u64>);

impl Names {
    pub(crate) const fn new() -> Self {
        Self(Atomic::new(1))
    }

    fn next(&self) -> u64 {
        self.0.fetch_add(1, Relaxed)
    }
}

/// The jobs of a file by their fences.
#[pin_data]
pub(crate) struct Fences {
    #[pin]
    table: Mutex<Table>,
}

struct Table {
    jobs: RBTree<u64, Arc<Chain>>,
    count: u32,
    next: u64,
}

/// Jobs that have been handed in.
pub(crate) struct Submitted {
    /// The fence of the first one; those of the others follow.
    pub(crate) first_fence: u64,
    /// How many.
    pub(crate) count: u32,
}

impl Fences {
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            table <- new_mutex!(
                Table {
                    jobs: RBTree::new(),
                    count: 0,
                    next: 1,
                },
                "Fences::table"
            ),
        })
    }

    /// Hands in as many of the jobs as there is room for.
    ///
    /// # Errors
    ///
    /// - `EAGAIN` if there is room for none: the device has as many as it takes, or the
    ///   file has as many whose results have not been fetched.
    /// - `ENOMEM` if there is no memory for the first one.
    /// - `EIO` or `ENODEV` if the device is given up.
    pub(crate) fn submit(
        &self,
        device: &Device,
        space: &Space,
        jobs: &[JobDescriptor],
    ) -> Result<Submitted> {
        let mut table = self.table.lock();
        let first_fence = table.next;
        let mut count = 0;
        let mut error = EAGAIN;
        for descriptor in jobs {
            if let Err(failed) = table.submit(device, space, descriptor) {
                error = failed;
                break;
            }
            count += 1;
        }
        drop(table);
        if count == 0 {
            return Err(error);
        }
        device.core.link.queues().kick(Queue::Submit.raw());
        Ok(Submitted { first_fence, count })
    }

    /// Waits for a job to end and fetches its result.
    ///
    /// `jiffies` bounds the wait, if it is given; zero only looks.
    ///
    /// # Errors
    ///
    /// - `ENOENT` if there is no such fence, or its result has been fetched.
    /// - `ETIME` if the time ran out, `EINTR` if a signal arrived.
    /// - `EIO` or `ENODEV` if the device is given up.
    pub(crate) fn wait(
        &self,
        device: &Device,
        fence: u64,
        jiffies: Option<usize>,
    ) -> Result<JobReply> {
        self.fetch(device, fence, jiffies, Event::wait_interruptible)
    }

    /// Waits for a job to end and fetches its result. Only its end can end the caller's wait,
    /// or the caller's own.
    ///
    /// # Errors
    ///
    /// - `ENOENT` if there is no such fence, or its result has been fetched.
    /// - `EINTR` if the caller is being killed. The job then ends with the space.
    /// - `EIO` or `ENODEV` if the device is given up.
    pub(crate) fn finish(&self, device: &Device, fence: u64) -> Result<JobReply> {
        self.fetch(device, fence, None, Event::wait_killable)
    }
}

impl Fences {
    fn fetch(
        &self,
        device: &Device,
        fence: u64,
        jiffies: Option<usize>,
        wait: fn(&Event, usize) -> Waited,
    ) -> Result<JobReply> {
        let chain = self.table.lock().jobs.get(&fence).cloned().ok_or(ENOENT)?;
        if !chain.is_complete() {
            Self::wait_for(device, &chain, jiffies, wait)?;
        }
        {
            let mut table = self.table.lock();
            if table.jobs.remove(&fence).is_none() {
                return Err(ENOENT);
            }
            table.count -= 1;
        }
        let link = &device.core.link;
        let reply = chain.reply().ok_or_else(|| link.queues().error())?;
        match JobReply::read_from_prefix(reply) {
            Ok((reply, _)) => Ok(reply),
            Err(_) => Err(link.violated()),
        }
    }

    /// Waits until a chain completes. A job may take as long as it likes, but the device
    /// may not: now and then it is asked for a sign of life, without which it is given up
    /// and the chain fails.
    fn wait_for(
        device: &Device,
        chain: &Chain,
        mut jiffies: Option<usize>,
        wait: fn(&Event, usize) -> Waited,
    ) -> Result {
        let step = msecs_to_jiffies(CHECK_INTERVAL);
        while jiffies != Some(0) {
            let now = jiffies.map_or(step, |left| left.min(step));
            let sleep = || wait(chain.done(), now);
            let queues = device.core.link.queues();
            match queues.wait_with(Queue::Submit.raw(), chain, sleep)? {
                None | Some(Waited::Done) => return Ok(()),
                Some(Waited::Interrupted) => return Err(EINTR),
                Some(Waited::TimedOut) => {
                    if now == step {
                        // If there is none, the wait ends by itself.
                        let _ = device.device_statistics();
                        // An interrupt may have been forgotten.
                        for queue in [Queue::Fault, Queue::Submit] {
                            queues.look(queue.raw());
                        }
                    }
                    jiffies = jiffies.map(|left| left - now);
                }
            }
        }
        Err(ETIME)
    }
}

impl Table {
    fn submit(&mut self, device: &Device, space: &Space, descriptor: &JobDescriptor) -> Result {
        let core = &device.core;
        if self.count >= core.limits.max_jobs {
            return Err(EAGAIN);
        }
        let request = JobRequest {
            job: core.jobs.next().into(),
            space: space.id().into(),
            reserved: 0.into(),
            descriptor: *descriptor,
        };
        let handler: Arc<dyn Handler> = space.jobs.clone();
        let mut draft = Draft::new(
            size_of::<JobRequest>(),
            size_of::<JobReply>(),
            Some(handler),
            GFP_KERNEL,
        )?;
        draft
            .request()
            .extend_from_slice(request.as_bytes(), GFP_KERNEL)?;
        let room = core.link.queues().try_room(Queue::Submit.raw())?;
        let node = RBTreeNodeReservation::new(GFP_KERNEL)?;
        space.jobs.take_place()?;
        // From here on nothing fails.
        self.jobs
            .insert(node.into_node(self.next, room.post(draft)));
        self.next += 1;
        self.count += 1;
        Ok(())
    }
}
