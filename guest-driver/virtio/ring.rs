// SPDX-License-Identifier: GPL-2.0

//! One virtqueue: adds chains for the device and takes them back.
//!
//! Where replies are mostly not waited for, or not for long, the device is told not to interrupt as
//! long as no thread sleeps. Chains that it has returned are then collected by the next thread that
//! uses the ring: one that waits for a reply, needs a slot or kicks the device.
//!
//! Chains may be added without a kick, so that one kick covers several. No thread waits for a chain
//! that the device does not know of. A thread that sleeps for a chain or a slot first kicks the
//! device. A thread that adds a chain while another one sleeps for a slot kicks at once.
//!
//! A ring is used in one life of the device after the other: it is opened when the device is
//! started and closed when it has been reset. A slot of one life is of no use in the next.
//!
//! Knows neither the meaning of chains nor the device behind the ring.

use super::{chain::Chain, polling::Window};
use crate::{
    sys as bindings,
    wait::{self, Slots},
};
use core::ptr::NonNull;
use kernel::{
    error::to_result,
    new_mutex, new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Relaxed, Release},
        Arc, Mutex, SpinLockIrq,
    },
    time::Delta,
};

/// How long slots of an earlier life may still be held: a thread that holds one waits neither for
/// the device nor for a process.
const CLEARANCE: Delta = Delta::from_secs(1);

/// When the device is to interrupt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupts {
    /// For everything that it returns, except while a thread polls for it.
    Always,
    /// When a thread sleeps until it returns something.
    OnDemand,
}

/// One virtqueue.
#[pin_data]
pub(super) struct Ring {
    #[pin]
    raw: SpinLockIrq<RawRing>,
    /// Slots for chains: a chain that has one always fits.
    #[pin]
    pub(super) slots: Slots,
    /// Held by a thread that waits for several slots.
    #[pin]
    pub(super) gathering: Mutex<()>,
    pub(super) capacity: Atomic<u32>,
    /// The device's life. Written with `raw` locked.
    life: Atomic<u32>,
    wanted: Interrupts,
    /// The number of threads that sleep until the device returns something. Incremented before the
    /// interrupt is enabled, so a thread that disables it later, with the lock held, sees them.
    sleepers: Atomic<u32>,
    /// The number of threads among them that sleep for a slot. Incremented before the device is
    /// notified, which takes the lock, so a thread that adds a chain afterwards sees them.
    seekers: Atomic<u32>,
    /// One more than the greatest number of a chain that the device has returned. Changed with the
    /// lock held.
    returned: Atomic<u64>,
    window: Window,
    pub(super) interrupts: Atomic<u64>,
    pub(super) kicks: Atomic<u64>,
}

/// # Invariants
///
/// The pointer, if there is one, is valid.
struct RawRing {
    vq: Option<NonNull<bindings::virtqueue>>,
    /// The number of chains added.
    added: u64,
    /// The number of chains that the device has been notified of.
    told: u64,
    /// Chains that the virtqueue did not accept. The capacity is the number of slots.
    refused: KVec<Arc<Chain>>,
}

// SAFETY: A virtqueue may be used from any thread, one at a time.
unsafe impl Send for RawRing {}

impl Ring {
    pub(super) fn new(wanted: Interrupts) -> impl PinInit<Self> {
        // INVARIANT: There is no pointer.
        pin_init!(Self {
            raw <- new_spinlock_irq!(
                RawRing {
                    vq: None,
                    added: 0,
                    told: 0,
                    refused: KVec::new(),
                },
                "Ring::raw"
            ),
            slots <- Slots::new(0),
            gathering <- new_mutex!((), "Ring::gathering"),
            capacity: Atomic::new(0),
            life: Atomic::new(0),
            wanted,
            sleepers: Atomic::new(0),
            seekers: Atomic::new(0),
            returned: Atomic::new(0),
            window: Window::new(),
            interrupts: Atomic::new(0),
            kicks: Atomic::new(0),
        })
    }

    /// Makes sure that a queue has what it needs for chains of up to `pieces` descriptors. May
    /// allocate memory, and so wait for a change of a process that in turn waits for the device.
    ///
    /// # Errors
    ///
    /// `ENODEV` if the queue holds fewer chains than in an earlier life of the device, `ENOMEM` if
    /// there is no memory.
    ///
    /// # Safety
    ///
    /// The queue must exist.
    pub(super) unsafe fn reserve(&self, vq: *mut bindings::virtqueue, pieces: u32) -> Result {
        // SAFETY: The caller promises that the queue exists.
        let size = unsafe { bindings::virtqueue_get_vring_size(vq) };
        let capacity = size.checked_div(pieces).unwrap_or(0);
        match self.capacity.load(Relaxed) {
            0 => {
                let refused = KVec::with_capacity(capacity as usize, GFP_KERNEL)?;
                let none = core::mem::replace(&mut self.raw.lock().refused, refused);
                // After unlocking.
                drop(none);
                self.capacity.store(capacity, Relaxed);
                // One more than the capacity: `open` takes back the slot that `close` provides.
                for _ in 0..=capacity {
                    self.slots.give();
                }
                Ok(())
            }
            // The queue must still hold as many chains as planned.
            before if capacity < before => Err(ENODEV),
            _ => Ok(()),
        }
    }

    /// Begins to use a queue in a life of the device. Allocates nothing.
    ///
    /// # Errors
    ///
    /// `EBUSY` if a slot of the previous life is held for too long.
    ///
    /// # Safety
    ///
    /// [`Self::reserve`] must have succeeded for the queue. If this succeeds, it must exist until
    /// [`Self::close`].
    pub(super) unsafe fn open(&self, vq: *mut bindings::virtqueue, life: u32) -> Result {
        // Take back the slot that `close` has provided.
        if !self.slots.take_timeout(CLEARANCE) {
            return Err(EBUSY);
        }
        let mut ring = self.raw.lock();
        self.life.store(life, Relaxed);
        // INVARIANT: The caller promises that it is so.
        ring.vq = NonNull::new(vq);
        Ok(())
    }

    /// The device's life.
    pub(super) fn life(&self) -> u32 {
        self.life.load(Relaxed)
    }

    /// Adds a chain, which has a slot of this life, without kicking the device unless a thread
    /// sleeps for a slot. Returns whether the ring is still usable. If not, the device must be
    /// given up, and the chain completes only then: until the reset, the device may still be
    /// active.
    pub(super) fn add(&self, chain: Arc<Chain>, life: u32) -> bool {
        let mut ring = self.raw.lock();
        chain.set_life(life);
        let Some(vq) = ring.vq.filter(|_| life == self.life.load(Relaxed)) else {
            drop(ring);
            // The chain belongs to an earlier life: the device has been reset since.
            self.finish(chain, None);
            return true;
        };
        chain.set_number(ring.added);
        let added = {
            let out = chain.request();
            let (inn, inn_len) = chain.reply_buffer();
            let token = Arc::into_raw(chain.clone());
            // SAFETY:
            // - By the invariants `vq` is valid, and the lock makes us its only user.
            // - By the invariants of `Chain` both buffers are valid and stay where they
            //   are as long as the chain lives; the reference in `token` keeps it alive
            //   until the ring hands the token back. They are slab or vmalloc memory.
            // - The device only reads `out`. Until it returns the chain, the contents of `inn` are
            //   not used here.
            let added = to_result(unsafe {
                bindings::virtio_hmm_add(
                    vq.as_ptr(),
                    out.as_ptr().cast_mut().cast(),
                    out.len(),
                    inn.cast(),
                    inn_len,
                    token.cast_mut().cast(),
                )
            });
            if added.is_err() {
                // SAFETY: `token` comes from `into_raw`, and the ring has not taken it.
                drop(unsafe { Arc::from_raw(token) });
            }
            added
        };
        if added.is_err() {
            // This fits: this chain has a slot, and so has each chain in there.
            let _ = ring.refused.push_within_capacity(chain);
            return false;
        }
        ring.added = ring.added.saturating_add(1);
        drop(ring);
        if self.seekers.load(Relaxed) > 0 {
            self.kick();
        }
        true
    }

    /// Notifies the device of all chains that have been added, unless it has been notified.
    pub(super) fn kick(&self) {
        let mut ring = self.raw.lock();
        if let Some(vq) = ring.vq.filter(|_| ring.told != ring.added) {
            ring.told = ring.added;
            // SAFETY: By the invariants `vq` is valid; the lock makes us its only user.
            if unsafe { bindings::virtqueue_kick_prepare(vq.as_ptr()) } {
                self.kicks.fetch_add(1, Relaxed);
                // SAFETY: By the invariants `vq` is valid. Notifying does not sleep.
                unsafe { bindings::virtqueue_notify(vq.as_ptr()) };
            }
        }
        drop(ring);
        if self.wanted == Interrupts::OnDemand {
            // Replies that no thread waits for, so that they do not pile up.
            self.drain();
        }
    }

    /// The interrupt handler.
    pub(super) fn interrupted(&self) -> bool {
        // If all queues share an interrupt, this is called for each queue that has something.
        if self.is_awaited() {
            self.interrupts.fetch_add(1, Relaxed);
        }
        self.collect()
    }

    /// Completes the chains that the device has returned. Enables the interrupt for the next ones
    /// if a thread needs it. Returns whether the ring is still usable.
    pub(super) fn collect(&self) -> bool {
        loop {
            self.drain();
            if !self.is_awaited() || self.is_quiet() {
                return self.is_sound();
            }
        }
    }

    /// Waits until the device has returned a chain: polls as long as that pays, then calls `sleep`
    /// to sleep for it. Returns what `sleep` returned; `None` if it was not called.
    pub(super) fn wait<R>(&self, chain: &Chain, sleep: impl FnOnce() -> R) -> Option<R> {
        let wait = self.window.begin();
        while !chain.is_complete() {
            if !wait.goes_on() || wait::is_processor_wanted() {
                return Some(self.awaken(sleep));
            }
            self.drain();
        }
        if self.wanted == Interrupts::Always {
            self.collect();
        }
        None
    }

    /// Sleeps until there is a slot, for at most that long; returns whether it was taken.
    pub(super) fn take_slot(&self, timeout: Delta) -> bool {
        self.seekers.fetch_add(1, Relaxed);
        let taken = self.awaken(|| self.slots.take_timeout(timeout));
        self.seekers.fetch_sub(1, Relaxed);
        taken
    }

    /// Lets the device interrupt for what it returns while `sleep` sleeps.
    fn awaken<R>(&self, sleep: impl FnOnce() -> R) -> R {
        self.sleepers.fetch_add(1, Relaxed);
        // The awaited chain or slot may depend on chains that the device has not been notified of.
        // {drv-notify-before-wait}
        self.kick();
        self.collect();
        let result = sleep();
        self.sleepers.fetch_sub(1, Relaxed);
        result
    }

    /// Whether the device has returned the chain with this number or a later one.
    pub(super) fn has_returned(&self, number: u64) -> bool {
        let is_past = || self.returned.load(Acquire) > number;
        is_past() || {
            self.drain();
            is_past()
        }
    }

    fn is_awaited(&self) -> bool {
        self.wanted == Interrupts::Always || self.sleepers.load(Relaxed) > 0
    }

    fn finish(&self, chain: Arc<Chain>, written: Option<u32>) {
        self.slots.give();
        chain.complete(written);
    }

    /// Completes the chains that the device has returned. Disables the interrupt for later ones,
    /// unless a thread sleeps.
    pub(super) fn drain(&self) {
        while let Some((chain, written)) = self.next_used() {
            self.finish(chain, Some(written));
        }
    }

    fn next_used(&self) -> Option<(Arc<Chain>, u32)> {
        let ring = self.raw.lock();
        let vq = ring.vq?.as_ptr();
        if self.sleepers.load(Relaxed) == 0 {
            // SAFETY: By the invariants `vq` is valid; the lock makes us its only user.
            unsafe { bindings::virtqueue_disable_cb(vq) };
        }
        let mut written = 0;
        // SAFETY: By the invariants `vq` is valid; the lock makes us its only user.
        // `written` is valid for writes.
        let token = unsafe { bindings::virtqueue_get_buf(vq, &mut written) };
        if token.is_null() {
            return None;
        }
        // SAFETY: The tokens of this ring come from `Arc::into_raw` in `add`, and the ring
        // hands each of them back once.
        let chain = unsafe { Arc::from_raw(token.cast::<Chain>()) };
        let returned = self
            .returned
            .load(Relaxed)
            .max(chain.number().saturating_add(1));
        self.returned.store(returned, Release);
        Some((chain, written))
    }

    /// Enables the interrupt; returns whether the device has returned nothing meanwhile.
    fn is_quiet(&self) -> bool {
        let ring = self.raw.lock();
        ring.vq.is_none_or(|vq| {
            // SAFETY: By the invariants `vq` is valid; the lock makes us its only user.
            unsafe { bindings::virtqueue_enable_cb(vq.as_ptr()) }
        })
    }

    /// Whether the device has kept to the protocol on this ring.
    pub(super) fn is_sound(&self) -> bool {
        let ring = self.raw.lock();
        ring.vq.is_none_or(|vq| {
            // SAFETY: By the invariants `vq` is valid.
            ring.refused.is_empty() && !unsafe { bindings::virtqueue_is_broken(vq.as_ptr()) }
        })
    }

    /// Ends the use of the queue: fails all chains that the device has not returned, and wakes
    /// threads that wait for a slot, which then check the device. {drv-reset-forgets}
    ///
    /// Must be called once each time that it was opened.
    ///
    /// # Safety
    ///
    /// The device must have been reset.
    pub(super) unsafe fn close(&self) {
        let mut ring = self.raw.lock();
        let vq = ring.vq.take();
        // None of the remaining requests will be carried out any more.
        self.returned.store(ring.added, Release);
        ring.told = ring.added;
        drop(ring);
        loop {
            let refused = self.raw.lock().refused.pop();
            let Some(chain) = refused else { break };
            self.finish(chain, None);
        }
        while let Some(vq) = vq {
            // SAFETY: The pointer was valid while it was in `raw`, and queues are only deleted
            // after this. Nothing else uses it any more.
            let token = unsafe { bindings::virtqueue_detach_unused_buf(vq.as_ptr()) };
            if token.is_null() {
                break;
            }
            // SAFETY: A token is what `Arc::into_raw` made of a chain that was added, and is
            // returned once. The caller promises that the device does not use its memory any more.
            self.finish(unsafe { Arc::from_raw(token.cast()) }, None);
        }
        // This slot ends all waiting: each waiter that gets it passes it on. `open` takes it back.
        self.slots.give();
    }
}
