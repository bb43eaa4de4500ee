// SPDX-License-Identifier: GPL-2.0

//! Detects a device that has jobs but no longer responds.
//!
//! A job may take as long as it likes, and a thread that waits for it only sleeps, or polls. So as
//! long as the device has jobs it is periodically sent a request, and given up if it does not
//! answer. The same check also looks for other failures that would go unnoticed.
//!
//! Does not know the jobs.

use crate::{device::core::Core, space::Spaces, wait::Waited, wire::Queue};
use kernel::{
    impl_has_work, new_work,
    prelude::*,
    sync::{
        atomic::{Atomic, Full},
        Arc,
    },
    time::msecs_to_jiffies,
    workqueue::{Work, WorkItem},
};

/// How often a device that has jobs is checked, in milliseconds. A job may take as long as it
/// likes, but the device may not. {drv-bounded-wait}
const CHECK_INTERVAL: u32 = 10_000;

/// Watches a device.
#[pin_data]
pub(crate) struct Watchdog {
    core: Arc<Core>,
    spaces: Arc<Spaces>,
    /// Whether `check` is queued, or will check once more whether there are jobs.
    is_on: Atomic<bool>,
    #[pin]
    check: Work<Watchdog>,
}

impl_has_work! {
    impl HasWork<Self> for Watchdog { self.check }
}

impl WorkItem for Watchdog {
    type Pointer = Arc<Self>;

    /// Watches the device as long as it has jobs. Threads that wait for these only sleep, or poll.
    fn run(this: Arc<Self>) {
        let interval = msecs_to_jiffies(CHECK_INTERVAL);
        // No signals arrive here; an interruptible sleep does not count as load.
        while !matches!(this.core.closed.wait_interruptible(interval), Waited::Done) {
            // From here on, submitting a job queues this again. Each job is seen either here or
            // there, because both exchange the flag between their two steps.
            this.is_on.xchg(false, Full);
            if this.core.jobs() == 0 {
                return;
            }
            this.is_on.xchg(true, Full);
            // Without an answer the device is given up, which ends all jobs.
            let _ = this.core.read_statistics();
            // An interrupt may have been lost.
            for queue in [Queue::Fault, Queue::Submit] {
                this.core.link.queues().look(queue.raw());
            }
            this.end_starved_faults();
        }
    }
}

impl Watchdog {
    /// There are no jobs yet.
    pub(crate) fn new(core: Arc<Core>, spaces: Arc<Spaces>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                core,
                spaces,
                is_on: Atomic::new(false),
                check <- new_work!("Watchdog::check"),
            }),
            GFP_KERNEL,
        )
    }

    /// Called after a job has been counted and submitted: makes sure that the device is watched.
    pub(crate) fn has_job(self: &Arc<Self>) {
        if !self.is_on.xchg(true, Full) {
            self.core.work.with(|queue| {
                // If it is already running, it runs again.
                let _ = queue.enqueue(self.clone());
            });
        }
    }

    fn end_starved_faults(&self) {
        let spaces = self.spaces.all();
        let ended = spaces.and_then(|spaces| {
            let mut spaces = spaces.iter();
            spaces.try_for_each(|space| space.end_starved_faults())
        });
        if let Err(error) = ended {
            // The faults wait until the next check.
            pr_debug!("faults not answered: {:?}\n", error);
        }
    }
}
