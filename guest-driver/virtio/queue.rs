// SPDX-License-Identifier: GPL-2.0

//! The virtqueues of a device, from each start to the reset that follows.
//!
//! The time in between is a *life* of the device, and has a number. Every chain that is posted
//! completes in the same life: with the device's reply, or as failed when the device is given up.
//! Knows neither the meaning of requests nor why a device is started or stopped.
//!
//! Lock order: `Ring::gathering`, then `Queues::device`, then `Ring::raw` or `Queues::watcher`.

use super::{
    bus::Device,
    chain::{Chain, Draft, Written},
    ring::{Interrupts, Ring},
};
use crate::{quirks::reset::reset_device, sys as bindings, wait::WorkLink};
use core::ptr::null_mut;
use kernel::{
    device::{Bound, Core},
    error::to_result,
    impl_has_work, new_mutex, new_spinlock_irq, new_work,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Relaxed, Release},
        Arc, ArcBorrow, Mutex, SpinLockIrq,
    },
    time::Delta,
    workqueue::{Work, WorkItem},
};

/// How long to wait for the device to answer a request, or for a slot in a ring. Each wait is for
/// bounded work of the device, and the longest (a copy of some MiB) takes milliseconds.
/// {drv-bounded-wait}
const TIMEOUT: Delta = Delta::from_secs(30);

/// Logged when the device breaks the protocol of a ring, such as by returning a descriptor that it
/// does not own.
const NONSENSE: &CStr = c"a ring makes no sense";

/// The properties of a queue.
pub(crate) struct Plan {
    pub(crate) name: &'static CStr,
    /// The maximum number of descriptors in a chain.
    pub(crate) pieces: u32,
    /// The minimum number of chains that it must hold at a time.
    pub(crate) least: u32,
    pub(crate) interrupts: Interrupts,
}

/// Whether there is a device behind the queues.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum State {
    /// It takes the first request of a life, and no other.
    Starting,
    Running,
    /// It has been reset, and may be started again.
    Stopped,
    /// It has been removed.
    Gone,
}

/// Notified when a device is given up.
pub(crate) trait Watcher: Send + Sync {
    /// Called at most once in each life of the device, after it has been reset. Must not wait for
    /// the device.
    fn given_up(self: Arc<Self>);
}

/// The virtqueues of a device.
#[pin_data]
pub(crate) struct Queues {
    #[pin]
    device: Mutex<Option<RawDevice>>,
    /// A [`State`]. Written with `device` locked.
    state: Atomic<u32>,
    /// The number of times that the device has been started. Written with `device` locked.
    life: Atomic<u32>,
    #[pin]
    watcher: SpinLockIrq<Option<Arc<dyn Watcher>>>,
    plans: &'static [Plan],
    rings: KVec<Pin<KBox<Ring>>>,
    work: Arc<WorkLink>,
    #[pin]
    broken: Work<Queues>,
}

impl_has_work! {
    impl HasWork<Self> for Queues { self.broken }
}

impl WorkItem for Queues {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.give_up(NONSENSE);
    }
}

/// # Invariants
///
/// The device is valid, and bound to its driver. Its queues exist as long as this is in
/// [`Queues::device`]; only the thread that takes it out of there deletes them.
#[derive(Clone, Copy)]
struct RawDevice(*mut bindings::virtio_device);

// SAFETY: A virtio device may be used from any thread.
unsafe impl Send for RawDevice {}

impl Queues {
    /// The queues of a device that does not run yet. `work` runs what may sleep.
    pub(crate) fn new(plans: &'static [Plan], work: Arc<WorkLink>) -> Result<Arc<Self>> {
        let mut rings = KVec::with_capacity(plans.len(), GFP_KERNEL)?;
        for plan in plans {
            let ring = KBox::pin_init(Ring::new(plan.interrupts), GFP_KERNEL)?;
            rings.push(ring, GFP_KERNEL)?;
        }
        Arc::pin_init(
            pin_init!(Self {
                device <- new_mutex!(None, "Queues::device"),
                state: Atomic::new(State::Stopped as u32),
                life: Atomic::new(0),
                watcher <- new_spinlock_irq!(None, "Queues::watcher"),
                plans,
                rings,
                work,
                broken <- new_work!("Queues::broken"),
            }),
            GFP_KERNEL,
        )
    }

    fn ring(&self, queue: u16) -> Result<&Ring> {
        self.rings
            .get(usize::from(queue))
            .map(|ring| &**ring)
            .ok_or(EINVAL)
    }

    /// The error of a failed operation on the device.
    pub(crate) fn error(&self) -> Error {
        if self.state.load(Relaxed) == State::Gone as u32 {
            ENODEV
        } else {
            EIO
        }
    }

    /// The same, after making sure that the device has been reset and uses nothing any more. May
    /// sleep.
    fn settled_error(&self) -> Error {
        // The thread that gives the device up holds the lock until the reset is done.
        drop(self.device.lock());
        self.error()
    }

    fn is_in(&self, state: State) -> bool {
        self.state.load(Relaxed) == state as u32
    }

    /// Whether the device takes requests.
    pub(crate) fn is_running(&self) -> bool {
        self.is_in(State::Running)
    }

    /// The number of the device's life, which began with its last start.
    pub(crate) fn life(&self) -> u32 {
        self.life.load(Acquire)
    }

    /// Allows requests to be posted, once the first request of a life has been answered.
    pub(crate) fn open(&self) {
        let _device = self.device.lock();
        if self.is_in(State::Starting) {
            self.state.store(State::Running as u32, Relaxed);
        }
    }

    /// Sets the watcher that is notified when the device is given up; `None` for none.
    pub(crate) fn watch(&self, watcher: Option<Arc<dyn Watcher>>) {
        let before = core::mem::replace(&mut *self.watcher.lock(), watcher);
        // After unlocking.
        drop(before);
    }

    /// The number of queue interrupts handled.
    pub(crate) fn interrupts(&self) -> u64 {
        let rings = self.rings.iter();
        rings.fold(0, |sum, ring| {
            sum.saturating_add(ring.interrupts.load(Relaxed))
        })
    }

    /// The number of notifications sent to the device. None is sent while the device polls.
    pub(crate) fn kicks(&self) -> u64 {
        let rings = self.rings.iter();
        rings.fold(0, |sum, ring| sum.saturating_add(ring.kicks.load(Relaxed)))
    }

    /// The number of chains that a queue holds at a time.
    pub(crate) fn capacity(&self, queue: u16) -> u32 {
        self.ring(queue)
            .map_or(0, |ring| ring.capacity.load(Relaxed))
    }

    /// Reserves a slot on a queue, as soon as one is free. May sleep.
    ///
    /// # Errors
    ///
    /// `EIO` or `ENODEV` if the device is given up, including when no slot became free in time. The
    /// device has then been reset.
    pub(crate) fn reserve_slot(self: &Arc<Self>, queue: u16) -> Result<ReservedSlot<'_>> {
        let ring = self.ring(queue)?;
        let life = self.life();
        if !self.take_now(ring) && !ring.take_slot(TIMEOUT) {
            self.give_up_in(life, c"a queue stays full");
            return Err(self.settled_error());
        }
        let slot = ReservedSlot::new(self, ring);
        // `stop` also provides a slot, to end waiting. Dropping the slot here passes it on, so the
        // next waiter wakes up, too.
        if self.is_running() {
            Ok(slot)
        } else {
            Err(self.settled_error())
        }
    }

    /// Reserves the slot for the first request of a life. Does not sleep.
    ///
    /// # Errors
    ///
    /// `EIO` or `ENODEV` if the device has been given up again.
    pub(crate) fn reserve_first_slot(self: &Arc<Self>, queue: u16) -> Result<ReservedSlot<'_>> {
        let ring = self.ring(queue)?;
        if self.is_in(State::Starting) && self.take_now(ring) {
            Ok(ReservedSlot::new(self, ring))
        } else {
            Err(self.error())
        }
    }

    /// Reserves two slots on a queue, as soon as two are free. May sleep. Threads that need two
    /// cannot deadlock: at most one of them sleeps while it holds a single slot.
    ///
    /// # Errors
    ///
    /// As [`Self::reserve_slot`].
    pub(crate) fn reserve_two_slots(self: &Arc<Self>, queue: u16) -> Result<[ReservedSlot<'_>; 2]> {
        match self.try_reserve_two_slots(queue) {
            Err(error) if error == EAGAIN => {}
            other => return other,
        }
        // Only the holder of this lock sleeps with a single slot, and only for threads that use
        // their slots without waiting.
        let _gathering = self.ring(queue)?.gathering.lock();
        Ok([self.reserve_slot(queue)?, self.reserve_slot(queue)?])
    }

    /// Reserves two slots on a queue if two are free now. Does not sleep.
    ///
    /// # Errors
    ///
    /// As [`Self::try_reserve_slot`].
    pub(crate) fn try_reserve_two_slots(
        self: &Arc<Self>,
        queue: u16,
    ) -> Result<[ReservedSlot<'_>; 2]> {
        Ok([self.try_reserve_slot(queue)?, self.try_reserve_slot(queue)?])
    }

    /// Reserves a slot on a queue if one is free now. Does not sleep.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if there is none, `EIO` or `ENODEV` if the device is given up.
    pub(crate) fn try_reserve_slot(self: &Arc<Self>, queue: u16) -> Result<ReservedSlot<'_>> {
        let ring = self.ring(queue)?;
        if !self.is_running() {
            return Err(self.error());
        }
        if self.take_now(ring) {
            Ok(ReservedSlot::new(self, ring))
        } else {
            Err(EAGAIN)
        }
    }

    /// Takes a slot if one is free, including one of a chain that has just been returned.
    fn take_now(&self, ring: &Ring) -> bool {
        ring.slots.try_take() || {
            ring.drain();
            ring.slots.try_take()
        }
    }

    /// Whether the device has returned the chain with this number, or one posted behind it on the
    /// queue. Does not sleep.
    pub(crate) fn has_returned(&self, queue: u16, number: u64) -> bool {
        self.ring(queue).is_ok_and(|ring| ring.has_returned(number))
    }

    /// Notifies the device of everything posted on a queue.
    pub(crate) fn kick(&self, queue: u16) {
        if let Ok(ring) = self.ring(queue) {
            ring.kick();
        }
    }

    /// Checks whether the device has returned chains of a queue without an interrupt. May sleep.
    pub(crate) fn look(&self, queue: u16) {
        if self.ring(queue).is_ok_and(|ring| !ring.collect()) {
            self.give_up(NONSENSE);
        }
    }

    /// Waits until the device has returned a chain that was posted on a queue, or is given up.
    ///
    /// # Errors
    ///
    /// `EIO` or `ENODEV` if the device is given up, including when it did not answer in time. The
    /// device has then been reset.
    pub(crate) fn wait<'c>(&self, queue: u16, chain: &'c Chain) -> Result<Written<'c>> {
        let sleep = || chain.done().wait_timeout(TIMEOUT);
        if self.wait_with(queue, chain, sleep)? == Some(false) {
            // A chain of an earlier life has already completed.
            self.give_up_if(|| !chain.is_complete(), c"it does not answer");
            // Every chain that was posted completes, at the latest by the reset.
            chain.done().wait();
        }
        chain.reply().ok_or_else(|| self.settled_error())
    }

    /// Polls for a moment for the device to return a chain that was posted on a queue. If it does
    /// not, calls `sleep`, which sleeps until the chain is done. Returns what `sleep` returned;
    /// `None` if it was not called.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is no such queue.
    pub(crate) fn wait_with<R>(
        &self,
        queue: u16,
        chain: &Chain,
        sleep: impl FnOnce() -> R,
    ) -> Result<Option<R>> {
        let ring = self.ring(queue)?;
        Ok(ring.wait(chain, || {
            if !ring.is_sound() {
                self.give_up(NONSENSE);
            }
            sleep()
        }))
    }

    /// Stops using a device that can no longer be trusted. May sleep.
    ///
    /// When this returns the device has been reset and every chain has completed.
    pub(crate) fn give_up(&self, why: &CStr) {
        self.give_up_if(|| true, why);
    }

    /// The same if the device is still in this life.
    pub(crate) fn give_up_in(&self, life: u32, why: &CStr) {
        self.give_up_if(|| self.life() == life, why);
    }

    /// The same if `is_so` holds for the current life of the device, which does not end meanwhile.
    fn give_up_if(&self, is_so: impl FnOnce() -> bool, why: &CStr) {
        let device = self.device.lock();
        let live = device.as_ref().filter(|_| !self.is_in(State::Stopped));
        let Some(raw) = live.filter(|_| is_so()) else {
            return;
        };
        // SAFETY: By the invariants of `RawDevice` it is valid, and not unbound while the lock
        // is held.
        let generic = unsafe {
            kernel::device::Device::<Bound>::from_raw(bindings::virtio_hmm_device(raw.0))
        };
        dev_err!(generic, "the device is given up: {}\n", why);
        self.stop(*raw);
        drop(device);
        let watcher = self.watcher.lock().clone();
        if let Some(watcher) = watcher {
            watcher.given_up();
        }
    }

    /// Resets the device, unless it has been reset since it was started.
    fn stop(&self, raw: RawDevice) {
        if self.is_in(State::Stopped) {
            return;
        }
        self.state.store(State::Stopped as u32, Relaxed);
        // SAFETY: By the invariants of `RawDevice` it is valid.
        unsafe { bindings::virtio_break_device(raw.0) };
        // SAFETY: By the invariants of `RawDevice` it is valid, and the caller holds the lock that
        // keeps it from being removed. This may sleep and does not run in a callback of the device,
        // and callbacks do not take that lock.
        unsafe { reset_device(raw.0) };
        for ring in &self.rings {
            // SAFETY: The device was just reset, and the ring was opened when it was started.
            unsafe { ring.close() };
        }
    }

    /// Schedules giving up the device. Does not sleep.
    fn break_soon(self: &Arc<Self>) {
        self.work.with(|queue| {
            // It does not matter if the work is already queued.
            let _ = queue.enqueue(self.clone());
        });
    }

    /// Sets up the queues and starts the device. It must have no queues, and its features must have
    /// been negotiated.
    fn start(&self, raw: RawDevice) -> Result {
        let mut raw_names = KVec::with_capacity(self.plans.len(), GFP_KERNEL)?;
        for plan in self.plans {
            raw_names.push(plan.name.as_char_ptr(), GFP_KERNEL)?;
        }
        let mut raw_queues = KVec::from_elem(null_mut(), self.rings.len(), GFP_KERNEL)?;

        // SAFETY: By the invariants of `RawDevice` it is valid, and the caller promises that it has
        // no queues yet. Both arrays have an element for each queue.
        to_result(unsafe {
            bindings::virtio_hmm_find_queues(
                raw.0,
                self.rings.len() as u32,
                raw_queues.as_mut_ptr(),
                raw_names.as_ptr(),
                Some(Self::interrupt),
            )
        })?;
        // Before taking the lock: the thread that gives the device up may be reclaiming memory.
        let reserved = self.rings.iter().zip(&raw_queues).zip(self.plans);
        let reserved = reserved.into_iter().try_for_each(|((ring, vq), plan)| {
            // SAFETY: The queue was just found, and is not deleted meanwhile.
            unsafe { ring.reserve(*vq, plan.pieces) }
        });
        if let Err(error) = reserved {
            // SAFETY: By the invariants of `RawDevice` it is valid. Its queues are not in use.
            unsafe { bindings::virtio_hmm_delete_queues(raw.0) };
            return Err(error);
        }
        let mut device = self.device.lock();
        let life = self.life().wrapping_add(1);
        let mut opened = Ok(());
        let mut count = 0;
        for (ring, vq) in self.rings.iter().zip(&raw_queues) {
            // SAFETY: Memory for the queue has been reserved. It exists until `BoundQueues`
            // deletes it, before which the ring is closed.
            opened = unsafe { ring.open(*vq, life) };
            if opened.is_err() {
                break;
            }
            count += 1;
        }
        if let Err(error) = opened {
            for ring in self.rings.iter().take(count) {
                // SAFETY: The device has not been started since it was reset, and the ring was
                // opened above.
                unsafe { ring.close() };
            }
            drop(device);
            // SAFETY: By the invariants of `RawDevice` it is valid. Its queues are not in use.
            unsafe { bindings::virtio_hmm_delete_queues(raw.0) };
            return Err(error);
        }
        // SAFETY: By the invariants of `RawDevice` it is valid; its queues have been found.
        unsafe { bindings::virtio_hmm_device_ready(raw.0) };
        self.life.store(life, Release);
        self.state.store(State::Starting as u32, Relaxed);
        // INVARIANT: Its queues exist until `BoundQueues::stop`, which takes this out first.
        *device = Some(raw);
        Ok(())
    }

    extern "C" fn interrupt(vq: *mut bindings::virtqueue) {
        // SAFETY: `start` has set this to the `Queues` of an `Arc`, which live as long as the
        // queues.
        let queues = unsafe { ArcBorrow::from_raw(bindings::virtio_hmm_priv(vq).cast::<Self>()) };
        // SAFETY: The bus calls with a valid queue.
        let index = unsafe { bindings::virtio_hmm_queue_index(vq) };
        let Some(ring) = queues.rings.get(index as usize) else {
            return;
        };
        if !ring.interrupted() {
            Arc::from(queues).break_soon();
        }
    }
}

/// A device that is bound to its driver, with its queues if it has been started. Dropping this
/// resets the device and deletes its queues.
///
/// Must be dropped before the device is unbound.
///
/// # Invariants
///
/// The device's private data point to the queues.
pub(crate) struct BoundQueues {
    queues: Arc<Queues>,
    raw: RawDevice,
}

impl BoundQueues {
    /// The device that is being bound, which has not been started.
    pub(crate) fn new(queues: Arc<Queues>, device: &Device<Core<'_>>) -> Self {
        let raw = device.as_raw();
        // SAFETY: The device is valid and being bound. The queues outlive this value: it holds a
        // reference to them, and clears this when dropped.
        unsafe { bindings::virtio_hmm_set_priv(raw, Arc::as_ptr(&queues).cast_mut().cast()) };
        // INVARIANT: The device is valid, and the caller drops this before it is unbound.
        let raw = RawDevice(raw);
        Self { queues, raw }
    }

    /// Begins a life of the device, whose features the bus has negotiated. The first request must
    /// be the one for [`Queues::reserve_first_slot`]; after it, [`Queues::open`] allows others.
    ///
    /// # Errors
    ///
    /// `ENODEV` if the device has changed in a way that does not fit any more, `EBUSY` if it has
    /// already been started, or what its bus returns.
    pub(crate) fn start(&mut self) -> Result {
        if self.queues.device.lock().is_some() {
            return Err(EBUSY);
        }
        self.queues.start(self.raw)
    }

    /// The same for a device that was reset since its features were negotiated.
    ///
    /// # Errors
    ///
    /// As [`Self::start`].
    pub(crate) fn start_anew(&mut self) -> Result {
        self.stop();
        // SAFETY: By the invariants of `RawDevice` it is valid. It has been reset and has no
        // queues.
        to_result(unsafe { bindings::virtio_hmm_negotiate(self.raw.0) })?;
        self.queues.start(self.raw)
    }

    /// Ends the current life of the device, if there is one: resets it and deletes its queues.
    pub(crate) fn stop(&mut self) {
        let mut device = self.queues.device.lock();
        let running = device.take();
        if let Some(raw) = running {
            self.queues.stop(raw);
        } else {
            // Undo the steps of a start that failed.
            //
            // SAFETY: By the invariants of `RawDevice` it is valid and bound, and it stays so as long
            // as this exists. This may sleep and does not run in a callback of the device, and
            // callbacks do not take the lock of `Queues::device`.
            unsafe { reset_device(self.raw.0) };
        }
        drop(device);
        if let Some(raw) = running {
            // SAFETY: By the invariants of `RawDevice` it is valid and has queues. `stop` has reset
            // it and cleared all pointers to them.
            unsafe { bindings::virtio_hmm_delete_queues(raw.0) };
        }
    }

    /// The device itself.
    pub(crate) fn device(&self) -> &kernel::device::Device<Bound> {
        // SAFETY: By the invariants of `RawDevice` it is valid and bound, as long as this exists.
        unsafe { kernel::device::Device::from_raw(bindings::virtio_hmm_device(self.raw.0)) }
    }

    /// Reads 32 bits of the configuration space at `offset`, a multiple of four.
    pub(crate) fn read_config(&self, offset: u32) -> u32 {
        // SAFETY: By the invariants of `RawDevice` it is valid.
        unsafe { bindings::virtio_hmm_read_config(self.raw.0, offset) }
    }
}

impl Drop for BoundQueues {
    fn drop(&mut self) {
        self.stop();
        let device = self.queues.device.lock();
        self.queues.state.store(State::Gone as u32, Relaxed);
        drop(device);
        // SAFETY: By the invariants of `RawDevice` it is valid. It has no queues any more.
        unsafe { bindings::virtio_hmm_set_priv(self.raw.0, null_mut()) };
    }
}

/// A reserved slot for one chain.
pub(crate) struct ReservedSlot<'a> {
    queues: &'a Arc<Queues>,
    ring: &'a Ring,
    life: u32,
}

impl Drop for ReservedSlot<'_> {
    fn drop(&mut self) {
        self.ring.slots.give();
    }
}

impl<'a> ReservedSlot<'a> {
    /// A slot that has been taken.
    fn new(queues: &'a Arc<Queues>, ring: &'a Ring) -> Self {
        let life = ring.life();
        Self { queues, ring, life }
    }

    /// The life of the device that the slot belongs to. A chain that is posted in any other life
    /// fails.
    pub(crate) fn life(&self) -> u32 {
        self.life
    }

    /// Posts the chain without kicking the device. Does not sleep.
    pub(crate) fn post(self, draft: Draft) -> Arc<Chain> {
        let life = self.life;
        self.post_in(life, draft)
    }

    /// The same for a request that is valid in one life of the device only; in any other it fails.
    pub(crate) fn post_in(self, life: u32, draft: Draft) -> Arc<Chain> {
        let Self { queues, ring, .. } = self;
        // The slot belongs to the chain now and is released when the chain completes.
        core::mem::forget(self);
        let chain = draft.seal();
        if !ring.add(chain.clone(), life) {
            queues.break_soon();
        }
        chain
    }
}
