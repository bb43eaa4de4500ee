// SPDX-License-Identifier: GPL-2.0

//! Ends of the jobs of a file: counts the results that have not been fetched, and notifies threads
//! of each additional one.
//!
//! Does not know the jobs themselves.
//!
//! Lock order: `Ends::state` is a lock that interrupts take. No other lock is taken with it held,
//! except that of the wait queue.

use crate::{
    eventfd::EventFd,
    poll::Waiters,
    space::ids::Jobs,
    virtio::{Chain, Handler},
    wait::Waited,
};
use kernel::{
    alloc::flags::GFP_KERNEL_ACCOUNT,
    current, new_spinlock_irq,
    prelude::*,
    sync::{Arc, SpinLockIrq},
};

/// Ends of the jobs of a file.
#[pin_data]
pub(crate) struct Ends {
    #[pin]
    state: SpinLockIrq<State>,
    /// Threads that poll the file, and those that wait here.
    waiters: Arc<Waiters>,
}

struct State {
    /// The number of jobs that have ended, less those whose results have been fetched. A result may
    /// be fetched a moment before the end is counted.
    left: i64,
    /// The number of changes of `left`.
    changes: u64,
    /// The number of threads that wait here.
    waiting: u32,
}

/// A state of [`Ends`], for comparison.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen(u64);

impl Ends {
    /// For a file without jobs, polled by these waiters.
    pub(crate) fn new(waiters: Arc<Waiters>) -> Result<Arc<Self>> {
        let state = State {
            left: 0,
            changes: 0,
            waiting: 0,
        };
        Arc::pin_init(
            pin_init!(Self {
                state <- new_spinlock_irq!(state, "Ends::state"),
                waiters,
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// A job has ended. May be called in interrupt context.
    fn one_more(&self) {
        let mut state = self.state.lock();
        state.left = state.left.wrapping_add(1);
        state.changes = state.changes.wrapping_add(1);
        drop(state);
        self.waiters.wake();
    }

    /// The result of a job that has ended has been fetched.
    pub(crate) fn one_less(&self) {
        let mut state = self.state.lock();
        state.left = state.left.wrapping_sub(1);
        state.changes = state.changes.wrapping_add(1);
        // A polling thread only needs to know of additional ends.
        let is_awaited = state.waiting > 0;
        drop(state);
        if is_awaited {
            self.waiters.wake();
        }
    }

    /// Whether a job has ended whose result has not been fetched.
    pub(crate) fn is_any_left(&self) -> bool {
        self.state.lock().left > 0
    }

    /// The current state.
    pub(crate) fn seen(&self) -> Seen {
        Seen(self.state.lock().changes)
    }

    /// Sleeps until the state differs from `seen`, for at most `jiffies`.
    pub(crate) fn wait(&self, seen: Seen, jiffies: usize) -> Waited {
        let mut state = self.state.lock();
        if state.changes != seen.0 {
            return Waited::Done;
        }
        if jiffies == 0 {
            return Waited::TimedOut;
        }
        state.waiting = state.waiting.saturating_add(1);
        // Signals are checked below: a change takes precedence.
        let _ = self.waiters.wait_interruptible_timeout(&mut state, jiffies);
        state.waiting = state.waiting.saturating_sub(1);
        if state.changes != seen.0 {
            Waited::Done
        } else if current!().signal_pending() {
            Waited::Interrupted
        } else {
            Waited::TimedOut
        }
    }
}

/// Notified of the ends of jobs that were submitted together.
pub(crate) struct Told {
    jobs: Arc<Jobs>,
    ends: Arc<Ends>,
    eventfd: Option<EventFd>,
}

impl Told {
    /// For jobs of a space, and of the file with these ends.
    pub(crate) fn new(jobs: Arc<Jobs>, ends: Arc<Ends>, eventfd: Option<EventFd>) -> Self {
        Self {
            jobs,
            ends,
            eventfd,
        }
    }

    /// The device has returned the chain of one of these jobs, or has been given up. May be called in
    /// interrupt context.
    pub(crate) fn completed(&self, chain: Arc<Chain>) {
        // First, so that a thread that learns of the end finds the slot free.
        self.jobs.completed(chain);
        self.ends.one_more();
        if let Some(eventfd) = &self.eventfd {
            eventfd.add_one();
        }
    }
}
