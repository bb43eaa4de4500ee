// SPDX-License-Identifier: GPL-2.0

//! Waits with a timeout, and workqueues of the module: what the kernel crate's completion and
//! workqueue do not offer yet.
//!
//! Does not know devices.

use crate::sys as bindings;
use core::ops::Deref;
use kernel::{
    error::to_result,
    new_spinlock_irq,
    prelude::*,
    sync::{Arc, SpinLockIrq},
    time::{msecs_to_jiffies, Delta, Jiffies},
    types::Opaque,
    workqueue::Queue,
};

/// A span of time in jiffies: zero for a negative one, and at most seven weeks.
pub(crate) fn jiffies(time: Delta) -> Jiffies {
    let milliseconds = time.as_millis_ceil().clamp(0, u32::MAX.into());
    msecs_to_jiffies(milliseconds as u32)
}

/// How an interruptible wait has ended.
pub(crate) enum Waited {
    /// The event has happened.
    Done,
    /// The time ran out.
    TimedOut,
    /// A signal arrived.
    Interrupted,
}

impl Waited {
    /// From what the kernel's waits return: the time left, or an error.
    fn new(left: isize) -> Self {
        match left {
            1.. => Self::Done,
            0 => Self::TimedOut,
            _ => Self::Interrupted,
        }
    }
}

/// How long a process is willing to wait.
#[derive(Clone, Copy)]
pub(crate) enum Deadline {
    /// For ever.
    Never,
    /// Until the caller's `CLOCK_MONOTONIC` reaches this value, in nanoseconds.
    At(i64),
}

impl Deadline {
    /// From a program's argument: a negative value means for ever.
    pub(crate) fn new(nanoseconds: i64) -> Self {
        if nanoseconds < 0 {
            Self::Never
        } else {
            Self::At(nanoseconds)
        }
    }

    /// How many jiffies to sleep until then, zero if it has passed. Must be called again after the
    /// sleep, which may be shorter than the time left, or end a little early.
    pub(crate) fn left(self) -> usize {
        let Self::At(end) = self else {
            // Seven weeks. The caller must call again after the sleep anyway.
            return msecs_to_jiffies(u32::MAX);
        };
        // SAFETY: The function may be called by any process.
        let now = unsafe { bindings::virtio_hmm_monotonic_now() };
        let left = u64::try_from(end.saturating_sub(now)).unwrap_or(0);
        msecs_to_jiffies(u32::try_from(left.div_ceil(1_000_000)).unwrap_or(u32::MAX))
    }
}

/// Whether another task is to run on this processor.
pub(crate) fn is_processor_wanted() -> bool {
    // SAFETY: Always safe to call.
    unsafe { bindings::virtio_hmm_need_resched() }
}

/// An event that happens once and stays set.
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

    /// Resets the event. It must be set and have no waiters.
    pub(crate) fn reset(&self) {
        // SAFETY: By construction the completion is initialised. Calling this too early leads to an
        // event that is missed or happens twice, but to nothing unsafe.
        unsafe { bindings::virtio_hmm_reinit_completion(self.raw.get()) };
    }

    /// Sets the event and wakes all waiters. May be called in interrupt context.
    pub(crate) fn set(&self) {
        // SAFETY: By construction the completion is initialised.
        unsafe { bindings::complete_all(self.raw.get()) };
    }

    /// Waits until the event is set.
    pub(crate) fn wait(&self) {
        // SAFETY: By construction the completion is initialised.
        unsafe { bindings::wait_for_completion(self.raw.get()) };
    }

    /// Waits at most that long; returns whether the event is set.
    pub(crate) fn wait_timeout(&self, timeout: Delta) -> bool {
        // SAFETY: By construction the completion is initialised.
        let left =
            unsafe { bindings::wait_for_completion_timeout(self.raw.get(), jiffies(timeout)) };
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

/// A counter of free slots that threads can wait for.
#[pin_data]
pub(crate) struct Slots {
    #[pin]
    raw: Opaque<bindings::semaphore>,
}

// SAFETY: A `struct semaphore` may be used from any thread.
unsafe impl Send for Slots {}
// SAFETY: A `struct semaphore` does its own locking, which is safe in interrupts.
unsafe impl Sync for Slots {}

impl Slots {
    /// `count` free slots.
    pub(crate) fn new(count: u16) -> impl PinInit<Self> {
        pin_init!(Self {
            raw <- Opaque::ffi_init(move |slot: *mut bindings::semaphore| {
                // SAFETY: `slot` is valid for writes and will not move.
                unsafe { bindings::virtio_hmm_init_semaphore(slot, count.into()) };
            }),
        })
    }

    /// Takes a slot, waiting at most that long; returns whether it did.
    pub(crate) fn take_timeout(&self, timeout: Delta) -> bool {
        // SAFETY: By construction the semaphore is initialised. `down_timeout` takes
        // a `long`, which holds the jiffies of any `u32` of milliseconds.
        let taken = unsafe { bindings::down_timeout(self.raw.get(), jiffies(timeout) as isize) };
        to_result(taken).is_ok()
    }

    /// Takes a slot if one is free; returns whether it did.
    pub(crate) fn try_take(&self) -> bool {
        // SAFETY: By construction the semaphore is initialised.
        unsafe { bindings::down_trylock(self.raw.get()) == 0 }
    }

    /// Frees a slot. May be called in interrupt context.
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

/// Gives access to a [`Workqueue`] as long as it exists.
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
                // SAFETY: Nothing else has the workqueue.
                unsafe { bindings::destroy_workqueue(raw) };
                Err(error)
            }
        }
    }

    /// A link that other parts may hold to queue work.
    pub(crate) fn link(&self) -> Arc<WorkLink> {
        self.link.clone()
    }
}

impl Drop for Workqueue {
    fn drop(&mut self) {
        let raw = self.link.queue.lock().take();
        if let Some(RawQueue(raw)) = raw {
            // SAFETY: By the invariants the workqueue exists. It was just taken out of the link, so
            // no more work can be queued; queued work is finished first.
            unsafe { bindings::destroy_workqueue(raw) };
        }
    }
}

impl WorkLink {
    /// Calls `hand_in` with the workqueue if it still exists. May be called in interrupt context;
    /// `hand_in` runs with interrupts disabled.
    pub(crate) fn with<R>(&self, hand_in: impl FnOnce(&Queue) -> R) -> Option<R> {
        let queue = self.queue.lock();
        let RawQueue(raw) = queue.deref().as_ref()?;
        // SAFETY: By the invariants of `Workqueue` the workqueue exists as long as it is in the
        // link, which is as long as the lock is held.
        Some(hand_in(unsafe { Queue::from_raw(*raw) }))
    }
}
