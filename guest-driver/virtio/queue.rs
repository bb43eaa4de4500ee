// SPDX-License-Identifier: GPL-2.0

//! The virtqueues of a device, from its start to its reset.
//!
//! Every chain that is posted completes: with the device's reply, or as failed when the
//! device is given up. Knows nothing of what requests mean.
//!
//! Lock order: `Queues::device`, then `Ring::raw`.

use super::{
    chain::Chain,
    ring::{Interrupts, Ring, Room},
    Device,
};
use crate::{sys as bindings, wait::WorkLink};
use core::ptr::null_mut;
use kernel::{
    device::{Bound, Core},
    error::to_result,
    impl_has_work, new_mutex, new_work,
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc, ArcBorrow, Mutex,
    },
    workqueue::{Work, WorkItem},
};

/// How long the device may take to answer a request, and a place in a ring to become
/// free, in milliseconds. Everything that is waited for is bounded work of the
/// device, of which the longest (a copy of some MiB) takes milliseconds.
const PATIENCE: u32 = 30_000;

/// Why a device is given up that returns what it was not lent, or the like.
const NONSENSE: &CStr = c"a ring makes no sense";

/// What a queue is like.
pub(crate) struct Plan {
    pub(crate) name: &'static CStr,
    /// Of how many descriptors its chains consist at most.
    pub(crate) pieces: u32,
    pub(crate) interrupts: Interrupts,
}

/// Whether there is a device behind the queues.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum State {
    Running,
    /// It broke the protocol or did not answer, and was reset.
    Broken,
    /// There is none, not yet or not any more.
    Gone,
}

/// The virtqueues of a device.
#[pin_data]
pub(crate) struct Queues {
    #[pin]
    device: Mutex<Option<RawDevice>>,
    /// A [`State`]. Written with `device` locked.
    state: Atomic<u32>,
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
/// The device is valid and its queues exist as long as this is in [`Queues::device`], and
/// until whoever takes it out of there deletes them.
struct RawDevice(*mut bindings::virtio_device);

// SAFETY: A virtio device may be used from any thread.
unsafe impl Send for RawDevice {}

impl Queues {
    /// The queues of a device that does not run yet. What may sleep is done by `work`.
    pub(crate) fn new(plans: &'static [Plan], work: Arc<WorkLink>) -> Result<Arc<Self>> {
        let mut rings = KVec::with_capacity(plans.len(), GFP_KERNEL)?;
        for plan in plans {
            let ring = KBox::pin_init(Ring::new(plan.interrupts), GFP_KERNEL)?;
            rings.push(ring, GFP_KERNEL)?;
        }
        Arc::pin_init(
            pin_init!(Self {
                device <- new_mutex!(None, "Queues::device"),
                state: Atomic::new(State::Gone as u32),
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

    /// What an operation on the device fails with, if it fails.
    pub(crate) fn error(&self) -> Error {
        if self.state.load(Relaxed) == State::Gone as u32 {
            ENODEV
        } else {
            EIO
        }
    }

    /// The same, when it is certain that the device uses nothing any more: it has been
    /// reset. May sleep.
    fn settled_error(&self) -> Error {
        // Whoever gives the device up holds the lock until the reset is done.
        drop(self.device.lock());
        self.error()
    }

    fn is_running(&self) -> bool {
        self.state.load(Relaxed) == State::Running as u32
    }

    /// Queue interrupts that have been handled.
    pub(crate) fn interrupts(&self) -> u64 {
        self.rings
            .iter()
            .map(|ring| ring.interrupts.load(Relaxed))
            .sum()
    }

    /// How often the device was told of new chains; where it looks anyway, it is not.
    pub(crate) fn kicks(&self) -> u64 {
        let rings = self.rings.iter();
        rings.map(|ring| ring.kicks.load(Relaxed)).sum()
    }

    /// How many chains a queue takes at a time.
    pub(crate) fn capacity(&self, queue: u16) -> u32 {
        self.ring(queue)
            .map_or(0, |ring| ring.capacity.load(Relaxed))
    }

    /// A place on a queue, as soon as there is one. May sleep.
    ///
    /// # Errors
    ///
    /// `EIO` or `ENODEV` if the device is given up, also because no place became free. The
    /// device has then been reset.
    pub(crate) fn room(&self, queue: u16) -> Result<Room<'_>> {
        let ring = self.ring(queue)?;
        let place = || ring.places.take_timeout(PATIENCE);
        if !self.take_now(ring) && !ring.awaken(place) {
            self.give_up(c"a queue stays full");
            return Err(self.settled_error());
        }
        let room = Room::new(ring);
        // A place may also stem from `stop`, to say that it makes no sense to wait. It
        // is given back, so the next one who waits learns of it too.
        if self.is_running() {
            Ok(room)
        } else {
            Err(self.settled_error())
        }
    }

    /// A place on a queue if there is one now. Does not sleep.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if there is none, `EIO` or `ENODEV` if the device is given up.
    pub(crate) fn try_room(&self, queue: u16) -> Result<Room<'_>> {
        let ring = self.ring(queue)?;
        if !self.is_running() {
            return Err(self.error());
        }
        if self.take_now(ring) {
            Ok(Room::new(ring))
        } else {
            Err(EAGAIN)
        }
    }

    /// Takes a place if there is one, also one of a chain that has been returned just now.
    fn take_now(&self, ring: &Ring) -> bool {
        ring.places.try_take() || {
            ring.drain();
            ring.places.try_take()
        }
    }

    /// Tells the device of what has been posted on a queue.
    pub(crate) fn kick(&self, queue: u16) {
        if let Ok(ring) = self.ring(queue) {
            ring.kick();
        }
    }

    /// Looks whether the device has returned chains of a queue without saying so. May sleep.
    pub(crate) fn look(&self, queue: u16) {
        if self.ring(queue).is_ok_and(|ring| !ring.collect()) {
            self.give_up(NONSENSE);
        }
    }

    /// Waits until the device has returned a chain that was posted on a queue, or is given
    /// up.
    ///
    /// # Errors
    ///
    /// `EIO` or `ENODEV` if the device is given up, also because it did not answer. The
    /// device has then been reset.
    pub(crate) fn wait<'c>(&self, queue: u16, chain: &'c Chain) -> Result<&'c [u8]> {
        let sleep = || chain.done().wait_timeout(PATIENCE);
        if self.wait_with(queue, chain, sleep)? == Some(false) {
            self.give_up(c"it does not answer");
            // Every chain that was posted completes, if only by the reset.
            chain.done().wait();
        }
        chain.reply().ok_or_else(|| self.settled_error())
    }

    /// Looks for a moment whether the device returns a chain that was posted on a queue, and
    /// if not, has `sleep` sleep until it is done. Returns what that returns, `None` if it
    /// was not needed.
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

    /// Stops using a device that cannot be trusted any more. May sleep.
    ///
    /// When this returns the device has been reset and every chain has completed.
    pub(crate) fn give_up(&self, why: &CStr) {
        let device = self.device.lock();
        if let Some(raw) = device.as_ref() {
            if self.is_running() {
                // SAFETY: By the invariants of `RawDevice` it is valid, and not unbound
                // while the lock is held.
                let generic = unsafe {
                    kernel::device::Device::<Bound>::from_raw(bindings::virtio_hmm_device(raw.0))
                };
                dev_err!(generic, "the device is given up: {}\n", why);
                self.stop(raw, State::Broken);
            }
        }
    }

    fn stop(&self, raw: &RawDevice, state: State) {
        self.state.store(state as u32, Relaxed);
        // SAFETY: By the invariants of `RawDevice` it is valid.
        unsafe { bindings::virtio_break_device(raw.0) };
        // SAFETY: As above, and this does not run in a callback of the device; the
        // caller holds the lock that keeps it from being removed.
        unsafe { bindings::virtio_reset_device(raw.0) };
        for ring in &self.rings {
            // SAFETY: The device was just reset.
            unsafe { ring.fail_all() };
            // Whoever waits for a place shall look at the state.
            ring.places.give();
        }
    }

    /// Sets up the queues and starts the device.
    pub(crate) fn start(self: Arc<Self>, device: &Device<Core<'_>>) -> Result<RunningQueues> {
        let mut raw_names = KVec::with_capacity(self.plans.len(), GFP_KERNEL)?;
        for plan in self.plans {
            raw_names.push(plan.name.as_char_ptr(), GFP_KERNEL)?;
        }
        let mut raw_queues = KVec::from_elem(null_mut(), self.rings.len(), GFP_KERNEL)?;

        let vdev = device.as_raw();
        // SAFETY: The device is valid and being bound. `self` outlives its queues: the
        // `RunningQueues` below holds a reference until they are deleted.
        unsafe { bindings::virtio_hmm_set_priv(vdev, Arc::as_ptr(&self).cast_mut().cast()) };
        // SAFETY: The device is valid and being bound, and has no queues yet. Both
        // arrays have as many elements as queues are asked for.
        to_result(unsafe {
            bindings::virtio_hmm_find_queues(
                vdev,
                self.rings.len() as u32,
                raw_queues.as_mut_ptr(),
                raw_names.as_ptr(),
                Some(Self::interrupt),
            )
        })?;
        for ((ring, vq), plan) in self.rings.iter().zip(&raw_queues).zip(self.plans) {
            // SAFETY: The queue was just found. It exists until `RunningQueues` deletes it,
            // before which `stop` has failed all.
            unsafe { ring.open(*vq, plan.pieces) };
        }
        // SAFETY: The device is valid and its queues have been found.
        unsafe { bindings::virtio_hmm_device_ready(vdev) };
        self.state.store(State::Running as u32, Relaxed);
        // INVARIANT: The device is valid and its queues exist until
        // `RunningQueues::close`, which takes this away before.
        *self.device.lock() = Some(RawDevice(vdev));
        Ok(RunningQueues(self))
    }

    extern "C" fn interrupt(vq: *mut bindings::virtqueue) {
        // SAFETY: `start` has set this to what an `Arc` of the `Queues` points to, which
        // live as long as the queues.
        let queues = unsafe { ArcBorrow::from_raw(bindings::virtio_hmm_priv(vq).cast::<Self>()) };
        // SAFETY: The bus calls with a valid queue.
        let index = unsafe { bindings::virtio_hmm_queue_index(vq) };
        let Some(ring) = queues.rings.get(index as usize) else {
            return;
        };
        if !ring.interrupted() {
            queues.work.with(|queue| {
                // If it is on its way already, that is as good.
                let _ = queue.enqueue(Arc::from(queues));
            });
        }
    }
}

/// Queues of a device that has been started; stops the device when dropped.
///
/// Must be dropped before the device is unbound.
pub(crate) struct RunningQueues(Arc<Queues>);

impl Drop for RunningQueues {
    fn drop(&mut self) {
        let raw = {
            let mut device = self.0.device.lock();
            let raw = device.take();
            if let Some(raw) = &raw {
                self.0.stop(raw, State::Gone);
            }
            raw
        };
        if let Some(raw) = raw {
            // SAFETY: By the invariants of `RawDevice` the device is valid and has
            // queues. `stop` has reset it and taken all pointers to them away.
            unsafe { bindings::virtio_hmm_delete_queues(raw.0) };
            // SAFETY: The device is valid.
            unsafe { bindings::virtio_hmm_set_priv(raw.0, null_mut()) };
        }
    }
}
