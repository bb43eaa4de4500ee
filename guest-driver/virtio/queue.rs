// SPDX-License-Identifier: GPL-2.0

//! Virtqueues that own what the device works on.
//!
//! A [`Chain`] is memory for one request and its reply. Once it is posted the ring
//! holds a reference of its own, so that the memory outlives whoever waits for it;
//! its contents can be read again when the device has returned it, or has been
//! reset. Every chain that is posted completes: with the device's reply, or as
//! failed when the device is given up.
//!
//! Knows nothing of what requests mean.
//!
//! Lock order: `Queues::device`, then `Ring::raw`.

use super::Device;
use crate::{
    sys as bindings,
    wait::{Event, Places, WorkLink},
};
use core::{
    pin::Pin,
    ptr::{null_mut, NonNull},
};
use kernel::{
    alloc::Flags,
    device::{Bound, Core},
    error::to_result,
    impl_has_work, new_mutex, new_spinlock_irq, new_work,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Relaxed, Release},
        Arc, ArcBorrow, Mutex, SpinLockIrq, UniqueArc,
    },
    workqueue::{Work, WorkItem},
};

/// How long the device may take to answer a request, and a place in a ring to become
/// free, in milliseconds. Everything that is waited for is bounded work of the
/// device, of which the longest (a copy of some MiB) takes milliseconds.
const PATIENCE: u32 = 30_000;

/// Why a device is given up that returns what it was not lent, or the like.
const NONSENSE: &CStr = c"a ring makes no sense";

/// Told when the device has returned a chain.
pub(crate) trait Handler: Send + Sync {
    /// Called once for each chain that was posted, in interrupt context or with the
    /// device given up.
    fn completed(&self, chain: Arc<Chain>);
}

/// Memory for one request and its reply, in the hands of who writes the request.
pub(crate) struct Draft(Pin<UniqueArc<Chain>>);

impl Draft {
    /// Memory for a request of up to `capacity` bytes, which is empty as yet, and a
    /// reply of `room` bytes.
    pub(crate) fn new(
        capacity: usize,
        room: usize,
        handler: Option<Arc<dyn Handler>>,
        flags: Flags,
    ) -> Result<Self> {
        let out = KVVec::with_capacity(capacity, flags)?;
        let inn = KVVec::from_elem(0, room, flags)?;
        UniqueArc::pin_init(
            // INVARIANT: The chain has not been posted.
            try_pin_init!(Chain {
                out,
                inn,
                written: Atomic::new(Chain::PENDING),
                done: Arc::pin_init(Event::new(), flags)?,
                handler,
            }),
            flags,
        )
        .map(Self)
    }

    /// A chain that was posted, to be used once more. Its request is as it was. Waits until
    /// it completes.
    ///
    /// Returns `None` if somebody else still holds the chain; the ring does not.
    pub(crate) fn again(chain: Arc<Chain>) -> Option<Self> {
        // Even if it is known to have completed: only then has the ring let go of it.
        chain.done.wait();
        let chain = Arc::into_unique_or_drop(chain)?;
        // INVARIANT: The chain is not posted: it has completed, and by `post` a draft
        // was made of it only once.
        chain.written.store(Chain::PENDING, Relaxed);
        chain.done.reset();
        Some(Self(chain))
    }

    /// The request. Does not allocate if it stays within the capacity.
    pub(crate) fn request(&mut self) -> &mut KVVec<u8> {
        // By the invariants of `Chain`, this may still be resized.
        self.0.as_mut().project().out
    }
}

/// Memory for one request and its reply.
///
/// # Invariants
///
/// - From when the chain is posted until it completes, `out` and `inn` are not
///   resized, so that the addresses of their contents do not change.
/// - From when the chain is posted until `written` is not [`Chain::PENDING`], the
///   contents of `inn` belong to the device, and nobody makes a reference to them.
#[pin_data]
pub(crate) struct Chain {
    out: KVVec<u8>,
    inn: KVVec<u8>,
    /// Bytes of `inn` that the device has written, or one of the two values below.
    written: Atomic<usize>,
    /// Happens when the ring has let go of the chain, which this must outlive for that.
    done: Arc<Event>,
    handler: Option<Arc<dyn Handler>>,
}

impl Chain {
    /// The device has not returned the chain.
    const PENDING: usize = usize::MAX;
    /// The device has been given up.
    const FAILED: usize = usize::MAX - 1;

    /// Happens when the chain completes.
    pub(crate) fn done(&self) -> &Event {
        &self.done
    }

    /// Whether the chain has completed.
    pub(crate) fn is_complete(&self) -> bool {
        self.written.load(Acquire) != Self::PENDING
    }

    /// What the device has written, or `None` if it has been given up or has not
    /// returned the chain.
    pub(crate) fn reply(&self) -> Option<&[u8]> {
        let written = self.written.load(Acquire);
        if written == Self::PENDING {
            return None;
        }
        // By the invariants the contents are no longer the device's. It may claim to
        // have written more than there is room for.
        (written != Self::FAILED).then(|| self.inn.get(..written).unwrap_or(&self.inn))
    }

    fn complete(self: Arc<Self>, written: usize) {
        let done = self.done.clone();
        self.written.store(written, Release);
        if let Some(handler) = self.handler.clone() {
            handler.completed(self);
        } else {
            drop(self);
        }
        // Last of all: whoever waits may use the chain again, if nobody else holds it.
        done.set();
    }
}

/// One virtqueue.
#[pin_data]
struct Ring {
    #[pin]
    raw: SpinLockIrq<RawRing>,
    /// Places for chains: a chain that has one always fits.
    #[pin]
    places: Places,
    capacity: Atomic<u32>,
    interrupts: Atomic<u64>,
    kicks: Atomic<u64>,
}

/// # Invariants
///
/// The pointer is valid as long as it is there.
struct RawRing(Option<NonNull<bindings::virtqueue>>);

// SAFETY: A virtqueue may be used from any thread, one at a time.
unsafe impl Send for RawRing {}

impl Ring {
    fn new() -> impl PinInit<Self> {
        // INVARIANT: There is no pointer.
        pin_init!(Self {
            raw <- new_spinlock_irq!(RawRing(None), "Ring::raw"),
            places <- Places::new(0),
            capacity: Atomic::new(0),
            interrupts: Atomic::new(0),
            kicks: Atomic::new(0),
        })
    }

    /// Lends the chain to the device without telling it.
    fn add(&self, chain: Arc<Chain>) {
        let ring = self.raw.lock();
        let added = ring.0.ok_or(ENODEV).and_then(|vq| {
            let (out, out_len) = (chain.out.as_ptr().cast_mut(), chain.out.len());
            let (inn, inn_len) = (chain.inn.as_ptr().cast_mut(), chain.inn.len());
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
                    out.cast(),
                    out_len,
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
            self.finish(chain, Chain::FAILED);
        }
    }

    /// Tells the device of all chains that have been added.
    fn kick(&self) {
        let ring = self.raw.lock();
        if let Some(vq) = ring.0 {
            // SAFETY: By the invariants `vq` is valid; the lock makes us its only user.
            if unsafe { bindings::virtqueue_kick_prepare(vq.as_ptr()) } {
                self.kicks.fetch_add(1, Relaxed);
                // SAFETY: As above. Notifying does not sleep.
                unsafe { bindings::virtqueue_notify(vq.as_ptr()) };
            }
        }
    }

    fn finish(&self, chain: Arc<Chain>, written: usize) {
        self.places.give();
        chain.complete(written);
    }

    /// Completes the chains that the device has returned; says whether the ring is of
    /// use still.
    fn collect(&self) -> bool {
        while let Some((chain, written)) = self.next_used() {
            self.finish(chain, written);
        }
        let ring = self.raw.lock();
        let Some(vq) = ring.0 else {
            return true;
        };
        // SAFETY: By the invariants `vq` is valid.
        !unsafe { bindings::virtqueue_is_broken(vq.as_ptr()) }
    }

    fn next_used(&self) -> Option<(Arc<Chain>, usize)> {
        let ring = self.raw.lock();
        let vq = ring.0?.as_ptr();
        loop {
            let mut written = 0;
            // SAFETY: By the invariants `vq` is valid; the lock makes us its only user.
            unsafe { bindings::virtqueue_disable_cb(vq) };
            // SAFETY: As above; `written` is valid for writes.
            let token = unsafe { bindings::virtqueue_get_buf(vq, &mut written) };
            if !token.is_null() {
                // SAFETY: The tokens of this ring come from `Arc::into_raw` in `add`,
                // and the ring hands each of them back once.
                let chain = unsafe { Arc::from_raw(token.cast::<Chain>()) };
                return Some((chain, written as usize));
            }
            // SAFETY: As above.
            if unsafe { bindings::virtqueue_enable_cb(vq) } {
                return None;
            }
        }
    }

    /// Fails all chains that the device has not returned.
    ///
    /// # Safety
    ///
    /// The device must have been reset.
    unsafe fn fail_all(&self) {
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
            self.finish(unsafe { Arc::from_raw(token.cast()) }, Chain::FAILED);
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

impl Room<'_> {
    /// Lends the memory to the device, without telling it yet.
    pub(crate) fn post(self, draft: Draft) -> Arc<Chain> {
        let ring = self.ring;
        // The place goes with the chain and is given back when it completes.
        core::mem::forget(self);
        let chain = Arc::from(draft.0);
        ring.add(chain.clone());
        chain
    }
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
    /// `count` queues of a device that does not run yet. What may sleep is done by `work`.
    pub(crate) fn new(count: usize, work: Arc<WorkLink>) -> Result<Arc<Self>> {
        let mut rings = KVec::with_capacity(count, GFP_KERNEL)?;
        for _ in 0..count {
            rings.push(KBox::pin_init(Ring::new(), GFP_KERNEL)?, GFP_KERNEL)?;
        }
        Arc::pin_init(
            pin_init!(Self {
                device <- new_mutex!(None, "Queues::device"),
                state: Atomic::new(State::Gone as u32),
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
        if !ring.places.take_timeout(PATIENCE) {
            self.give_up(c"a queue stays full");
            return Err(self.settled_error());
        }
        let room = Room { ring };
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
        if ring.places.try_take() {
            Ok(Room { ring })
        } else {
            Err(EAGAIN)
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

    /// Waits until the device has returned a chain that was posted, or is given up.
    ///
    /// # Errors
    ///
    /// `EIO` or `ENODEV` if the device is given up, also because it did not answer. The
    /// device has then been reset.
    pub(crate) fn wait<'c>(&self, chain: &'c Chain) -> Result<&'c [u8]> {
        if !chain.done.wait_timeout(PATIENCE) {
            self.give_up(c"it does not answer");
            // Every chain that was posted completes, if only by the reset.
            chain.done.wait();
        }
        chain.reply().ok_or_else(|| self.settled_error())
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

    /// Sets up the queues and starts the device. `pieces` says for each queue of how
    /// many descriptors its chains consist at most.
    pub(crate) fn start(
        self: Arc<Self>,
        device: &Device<Core<'_>>,
        names: &[&'static CStr],
        pieces: &[u32],
    ) -> Result<RunningQueues> {
        let mut raw_names = KVec::with_capacity(names.len(), GFP_KERNEL)?;
        for name in names {
            raw_names.push(name.as_char_ptr(), GFP_KERNEL)?;
        }
        let mut raw_queues = KVec::from_elem(null_mut(), self.rings.len(), GFP_KERNEL)?;
        if raw_names.len() != self.rings.len() {
            return Err(EINVAL);
        }

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
        for ((ring, vq), pieces) in self.rings.iter().zip(&raw_queues).zip(pieces) {
            // SAFETY: The queue was just found.
            let size = unsafe { bindings::virtqueue_get_vring_size(*vq) };
            ring.capacity.store(size / pieces, Relaxed);
            for _ in 0..size / pieces {
                ring.places.give();
            }
            // INVARIANT: The queue exists until `RunningQueues::close`, which takes the
            // pointer away before.
            ring.raw.lock().0 = NonNull::new(*vq);
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
        ring.interrupts.fetch_add(1, Relaxed);
        if !ring.collect() {
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
