// SPDX-License-Identifier: GPL-2.0

//! One virtqueue: lends chains to the device and takes them back.
//!
//! Where replies are mostly not waited for, or not for long, the device is told not to
//! interrupt as long as nobody sleeps: what it has returned is taken by whoever looks next,
//! that is who waits, who wants a place and who tells the device of more.
//!
//! Knows nothing of what chains mean, nor of the device behind the ring.

use super::{
    chain::{Chain, Draft},
    polling::Window,
};
use crate::{
    sys as bindings,
    wait::{self, Places},
};
use core::ptr::NonNull;
use kernel::{
    error::to_result,
    new_spinlock_irq,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, SpinLockIrq,
    },
};

/// When the device is to interrupt.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interrupts {
    /// For whatever it returns, but for what somebody is looking for anyway.
    Always,
    /// When somebody sleeps until it returns something.
    OnDemand,
}

/// One virtqueue.
#[pin_data]
pub(super) struct Ring {
    #[pin]
    raw: SpinLockIrq<RawRing>,
    /// Places for chains: a chain that has one always fits.
    #[pin]
    pub(super) places: Places,
    pub(super) capacity: Atomic<u32>,
    wanted: Interrupts,
    /// How many sleep until the device returns something. Counted before the interrupt is
    /// asked for, so that who turns it off with the lock held sees them afterwards.
    sleepers: Atomic<u32>,
    window: Window,
    pub(super) interrupts: Atomic<u64>,
    pub(super) kicks: Atomic<u64>,
}

/// # Invariants
///
/// The pointer is valid as long as it is there.
struct RawRing(Option<NonNull<bindings::virtqueue>>);

// SAFETY: A virtqueue may be used from any thread, one at a time.
unsafe impl Send for RawRing {}

impl Ring {
    pub(super) fn new(wanted: Interrupts) -> impl PinInit<Self> {
        // INVARIANT: There is no pointer.
        pin_init!(Self {
            raw <- new_spinlock_irq!(RawRing(None), "Ring::raw"),
            places <- Places::new(0),
            capacity: Atomic::new(0),
            wanted,
            sleepers: Atomic::new(0),
            window: Window::new(),
            interrupts: Atomic::new(0),
            kicks: Atomic::new(0),
        })
    }

    /// Begins to use a queue for chains of up to `pieces` descriptors.
    ///
    /// # Safety
    ///
    /// The queue must exist until [`Self::fail_all`].
    pub(super) unsafe fn open(&self, vq: *mut bindings::virtqueue, pieces: u32) {
        // SAFETY: The caller promises that the queue exists.
        let capacity = unsafe { bindings::virtqueue_get_vring_size(vq) } / pieces;
        self.capacity.store(capacity, Relaxed);
        for _ in 0..capacity {
            self.places.give();
        }
        // INVARIANT: So the caller promises.
        self.raw.lock().0 = NonNull::new(vq);
    }

    /// Lends the chain to the device without telling it.
    fn add(&self, chain: Arc<Chain>) {
        let ring = self.raw.lock();
        let added = ring.0.ok_or(ENODEV).and_then(|vq| {
            let out = chain.out();
            let (inn, inn_len) = chain.room();
            let token = Arc::into_raw(chain.clone());
            // SAFETY:
            // - By the invariants `vq` is valid, and the lock makes us its only user.
            // - By the invariants of `Chain` both buffers are valid and stay where they
            //   are as long as the chain lives; the reference in `token` keeps it alive
            //   until the ring hands the token back. They are slab or vmalloc memory.
            // - The device only reads `out`; until it returns the chain nobody uses the
            //   contents of `inn`.
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
        });
        drop(ring);
        if added.is_err() {
            self.finish(chain, None);
        }
    }

    /// Tells the device of all chains that have been added.
    pub(super) fn kick(&self) {
        let ring = self.raw.lock();
        if let Some(vq) = ring.0 {
            // SAFETY: By the invariants `vq` is valid; the lock makes us its only user.
            if unsafe { bindings::virtqueue_kick_prepare(vq.as_ptr()) } {
                self.kicks.fetch_add(1, Relaxed);
                // SAFETY: As above. Notifying does not sleep.
                unsafe { bindings::virtqueue_notify(vq.as_ptr()) };
            }
        }
        drop(ring);
        if self.wanted == Interrupts::OnDemand {
            // Replies that nobody waits for: so they are never many.
            self.drain();
        }
    }

    /// The interrupt handler.
    pub(super) fn interrupted(&self) -> bool {
        // Where all queues share an interrupt, this is called for each that has something.
        if self.is_awaited() {
            self.interrupts.fetch_add(1, Relaxed);
        }
        self.collect()
    }

    /// Completes the chains that the device has returned, and sees to it that it interrupts
    /// for the next ones if somebody wants that; says whether the ring is of use still.
    pub(super) fn collect(&self) -> bool {
        loop {
            self.drain();
            if !self.is_awaited() || self.is_quiet() {
                return self.is_sound();
            }
        }
    }

    /// Waits until the device has returned a chain: looks for it as long as that pays, then
    /// has `sleep` sleep for it. Returns what that returns, `None` if it was not needed.
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

    /// Lets the device interrupt for what it returns while `sleep` sleeps.
    pub(super) fn awaken<R>(&self, sleep: impl FnOnce() -> R) -> R {
        self.sleepers.fetch_add(1, Relaxed);
        self.collect();
        let result = sleep();
        self.sleepers.fetch_sub(1, Relaxed);
        result
    }

    fn is_awaited(&self) -> bool {
        self.wanted == Interrupts::Always || self.sleepers.load(Relaxed) > 0
    }

    fn finish(&self, chain: Arc<Chain>, written: Option<u32>) {
        self.places.give();
        chain.complete(written);
    }

    /// Completes the chains that the device has returned. It will not interrupt any more
    /// for those that come, unless somebody sleeps.
    pub(super) fn drain(&self) {
        while let Some((chain, written)) = self.next_used() {
            self.finish(chain, Some(written));
        }
    }

    fn next_used(&self) -> Option<(Arc<Chain>, u32)> {
        let ring = self.raw.lock();
        let vq = ring.0?.as_ptr();
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
        Some((chain, written))
    }

    /// Asks for an interrupt; says whether the device has returned nothing meanwhile.
    fn is_quiet(&self) -> bool {
        let ring = self.raw.lock();
        ring.0.is_none_or(|vq| {
            // SAFETY: By the invariants `vq` is valid; the lock makes us its only user.
            unsafe { bindings::virtqueue_enable_cb(vq.as_ptr()) }
        })
    }

    /// Whether the device has kept to the protocol on this ring.
    pub(super) fn is_sound(&self) -> bool {
        let ring = self.raw.lock();
        ring.0.is_none_or(|vq| {
            // SAFETY: By the invariants `vq` is valid.
            !unsafe { bindings::virtqueue_is_broken(vq.as_ptr()) }
        })
    }

    /// Fails all chains that the device has not returned.
    ///
    /// # Safety
    ///
    /// The device must have been reset.
    pub(super) unsafe fn fail_all(&self) {
        let vq = self.raw.lock().0.take();
        while let Some(vq) = vq {
            // SAFETY: The pointer was valid when it was in `raw`, and queues are only
            // deleted after this. Nobody else has it any more.
            let token = unsafe { bindings::virtqueue_detach_unused_buf(vq.as_ptr()) };
            if token.is_null() {
                break;
            }
            // SAFETY: As in `next_used`. The caller promises that the device does not
            // use the chain's memory any more.
            self.finish(unsafe { Arc::from_raw(token.cast()) }, None);
        }
    }
}

/// A place for one chain.
pub(crate) struct Room<'a> {
    ring: &'a Ring,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.ring.places.give();
    }
}

impl<'a> Room<'a> {
    /// A place that has been taken.
    pub(super) fn new(ring: &'a Ring) -> Self {
        Self { ring }
    }

    /// Lends the memory to the device, without telling it yet.
    pub(crate) fn post(self, draft: Draft) -> Arc<Chain> {
        let ring = self.ring;
        // The place goes with the chain and is given back when it completes.
        core::mem::forget(self);
        let chain = draft.seal();
        ring.add(chain.clone());
        chain
    }
}
