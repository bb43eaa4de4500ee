// SPDX-License-Identifier: GPL-2.0

//! Waiting with a limit, and a workqueue of one's own: what the kernel crate's
//! completion and workqueue do not offer yet.
//!
//! Knows nothing of devices.

use crate::sys as bindings;
use core::ops::Deref;
use kernel::{
    error::to_result,
    new_spinlock_irq,
    prelude::*,
    sync::{Arc, SpinLockIrq},
    time::msecs_to_jiffies,
    types::Opaque,
    workqueue::Queue,
};

/// How a wait that a signal may end has ended.
pub(crate) enum Waited {
    /// What was waited for has happened.
    Done,
    /// The time ran out.
    TimedOut,
    /// A signal arrived.
    Interrupted,
}

impl Waited {
    /// What the kernel's waits return: the time that is left, or an error.
    fn new(left: isize) -> Self {
        match left {
            1.. => Self::Done,
            0 => Self::TimedOut,
            _ => Self::Interrupted,
        }
    }
}

/// Whether somebody else is to run on this processor.
pub(crate) fn is_processor_wanted() -> bool {
    // SAFETY: Always safe to call.
    unsafe { bindings::virtio_hmm_need_resched() }
}

/// An event that happens once, and stays.
#[pin_data]
pub(crate) struct Event {
    #[pin]
    raw: Opaque<bindings::completion>,
}

// SAFETY: A `struct completion` may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: A `struct completion` does its own locking.
unsafe impl Sync for Event {}

impl Event {
    /// An event that has not happened.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            raw <- Opaque::ffi_init(|slot: *mut bindings::completion| {
                // SAFETY: `slot` is valid for writes and will not move.
                unsafe { bindings::init_completion(slot) };
            }),
        })
    }

    /// Lets it not have happened. Must not be called before it has, nor while anybody waits.
    pub(crate) fn reset(&self) {
        // SAFETY: By construction the completion is initialised. To call this too early
        // would lead to an event that is missed or happens twice, but to nothing unsafe.
        unsafe { bindings::virtio_hmm_reinit_completion(self.raw.get()) };
    }

    /// Lets it happen; wakes all who wait. May be called in interrupt context.
    pub(crate) fn set(&self) {
        // SAFETY: By construction the completion is initialised.
        unsafe { bindings::complete_all(self.raw.get()) };
    }

    /// Waits until it happens.
    pub(crate) fn wait(&self) {
        // SAFETY: By construction the completion is initialised.
        unsafe { bindings::wait_for_completion(self.raw.get()) };
    }

    /// Waits at most `milliseconds`; says whether it has happened.
    pub(crate) fn wait_timeout(&self, milliseconds: u32) -> bool {
        // SAFETY: By construction the completion is initialised.
        let left = unsafe {
            bindings::wait_for_completion_timeout(self.raw.get(), msecs_to_jiffies(milliseconds))
        };
        left != 0
    }

    /// Waits for at most `jiffies`, or until a signal arrives.
    pub(crate) fn wait_interruptible(&self, jiffies: usize) -> Waited {
        // SAFETY: By construction the completion is initialised.
        Waited::new(unsafe {
            bindings::wait_for_completion_interruptible_timeout(self.raw.get(), jiffies)
        })
    }

    /// Waits for at most `jiffies`, or until the caller is being killed.
    pub(crate) fn wait_killable(&self, jiffies: usize) -> Waited {
        // SAFETY: By construction the completion is initialised.
        Waited::new(unsafe {
            bindings::wait_for_completion_killable_timeout(self.raw.get(), jiffies)
        })
    }
}

/// A counter of free places that can be waited for.
#[pin_data]
pub(crate) struct Places {
    #[pin]
    raw: Opaque<bindings::semaphore>,
}

// SAFETY: A `struct semaphore` may be used from any thread.
unsafe impl Send for Places {}
// SAFETY: A `struct semaphore` does its own locking, which is safe in interrupts.
unsafe impl Sync for Places {}

impl Places {
    /// `count` free places.
    pub(crate) fn new(count: u16) -> impl PinInit<Self> {
        pin_init!(Self {
            raw <- Opaque::ffi_init(move |slot: *mut bindings::semaphore| {
                // SAFETY: `slot` is valid for writes and will not move.
                unsafe { bindings::virtio_hmm_init_semaphore(slot, count.into()) };
            }),
        })
    }

    /// Takes a place, waiting at most `milliseconds`; says whether it did.
    pub(crate) fn take_timeout(&self, milliseconds: u32) -> bool {
        // SAFETY: By construction the semaphore is initialised. `down_timeout` takes
        // a `long`, which holds the jiffies of any `u32` of milliseconds.
        let taken = unsafe {
            bindings::down_timeout(self.raw.get(), msecs_to_jiffies(milliseconds) as isize)
        };
        to_result(taken).is_ok()
    }

    /// Takes a place if one is free; says whether it did.
    pub(crate) fn try_take(&self) -> bool {
        // SAFETY: By construction the semaphore is initialised.
        unsafe { bindings::down_trylock(self.raw.get()) == 0 }
    }

    /// Gives a place back. May be called in interrupt context.
    pub(crate) fn give(&self) {
        // SAFETY: By construction the semaphore is initialised.
        unsafe { bindings::up(self.raw.get()) };
    }
}

/// A workqueue, until it is dropped.
///
/// # Invariants
///
/// `link` holds this workqueue, which lives, until `drop` takes it out.
pub(crate) struct Workqueue {
    link: Arc<WorkLink>,
}

/// Leads to a [`Workqueue`] as long as there is one.
#[pin_data]
pub(crate) struct WorkLink {
    #[pin]
    queue: SpinLockIrq<Option<RawQueue>>,
}

struct RawQueue(*mut bindings::workqueue_struct);

// SAFETY: A workqueue may be used and destroyed from any thread.
unsafe impl Send for RawQueue {}

impl Workqueue {
    /// Creates a workqueue whose items may take long and are not bound to a CPU.
    pub(crate) fn new(name: &CStr) -> Result<Self> {
        // SAFETY: `name` is a string that ends with NUL and is copied.
        let raw = unsafe { bindings::virtio_hmm_alloc_workqueue(name.as_char_ptr()) };
        if raw.is_null() {
            return Err(ENOMEM);
        }
        let link = Arc::pin_init(
            pin_init!(WorkLink {
                queue <- new_spinlock_irq!(Some(RawQueue(raw)), "WorkLink::queue"),
            }),
            GFP_KERNEL,
        );
        match link {
            // INVARIANT: `raw` was just created and is in `link`.
            Ok(link) => Ok(Self { link }),
            Err(error) => {
                // SAFETY: Nobody else knows of the workqueue.
                unsafe { bindings::destroy_workqueue(raw) };
                Err(error)
            }
        }
    }

    /// What others may hold to hand in work.
    pub(crate) fn link(&self) -> Arc<WorkLink> {
        self.link.clone()
    }
}

impl Drop for Workqueue {
    fn drop(&mut self) {
        let raw = self.link.queue.lock().take();
        if let Some(RawQueue(raw)) = raw {
            // SAFETY: By the invariants the workqueue lives. It was just taken out of
            // the link, so nobody hands in any more work; what has been handed in is
            // finished first.
            unsafe { bindings::destroy_workqueue(raw) };
        }
    }
}

impl WorkLink {
    /// Calls `hand_in` with the workqueue if it still exists. May be called in
    /// interrupt context; `hand_in` runs with interrupts disabled.
    pub(crate) fn with<R>(&self, hand_in: impl FnOnce(&Queue) -> R) -> Option<R> {
        let queue = self.queue.lock();
        let RawQueue(raw) = queue.deref().as_ref()?;
        // SAFETY: By the invariants of `Workqueue` the workqueue lives as long as it
        // is in the link, that is while the lock is held.
        Some(hand_in(unsafe { Queue::from_raw(*raw) }))
    }
}
