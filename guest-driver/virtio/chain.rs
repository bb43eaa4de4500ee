// SPDX-License-Identifier: GPL-2.0

//! Memory for one request and its reply, on its way to the device and back.
//!
//! Once a [`Chain`] is posted the ring holds a reference of its own, so the memory outlives a
//! thread that waits for it. Its contents can be read again when the device has returned it, or has
//! been reset.
//!
//! Knows neither rings nor the meaning of requests.

use crate::wait::Event;
use core::{marker::PhantomData, pin::Pin};
use kernel::{
    alloc::Flags,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Relaxed, Release},
        Arc, UniqueArc,
    },
};
use zerocopy::FromBytes;

/// Notified when the device has returned a chain.
pub(crate) trait Handler: Send + Sync {
    /// Called once for each chain that was posted, in interrupt context or when the device is given
    /// up.
    fn completed(&self, chain: Arc<Chain>);
}

/// Memory for one request and its reply while the request is being written.
pub(crate) struct Draft(Pin<UniqueArc<Chain>>);

impl Draft {
    /// Memory for a request of up to `capacity` bytes, empty at first, and a reply of
    /// `reply_bytes` bytes.
    pub(crate) fn new(
        capacity: usize,
        reply_bytes: usize,
        handler: Option<Arc<dyn Handler>>,
        flags: Flags,
    ) -> Result<Self> {
        let out = KVVec::with_capacity(capacity, flags)?;
        let inn = KVVec::from_elem(0, reply_bytes, flags)?;
        UniqueArc::pin_init(
            // INVARIANT: The chain has not been posted.
            try_pin_init!(Chain {
                out,
                inn,
                number: Atomic::new(0),
                written: Atomic::new(Chain::PENDING),
                life: Atomic::new(0),
                done: Arc::pin_init(Event::new(), flags)?,
                handler,
            }),
            flags,
        )
        .map(Self)
    }

    /// Reuses a chain that was posted. Its request is unchanged. Waits until the chain completes.
    ///
    /// Returns `None` if the chain has another owner; the ring does not count as one.
    pub(crate) fn again(chain: Arc<Chain>) -> Option<Self> {
        // Even if it is known to have completed: `done` is only set after the ring has dropped its
        // reference.
        chain.done.wait();
        let chain = Arc::into_unique_or_drop(chain)?;
        // INVARIANT: The chain is not posted: it has completed, and by `post` a draft
        // was made of it only once.
        chain.written.store(Chain::PENDING, Relaxed);
        chain.done.reset();
        Some(Self(chain))
    }

    /// Returns the chain for the ring to post.
    pub(super) fn seal(self) -> Arc<Chain> {
        Arc::from(self.0)
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
/// - From when the chain is posted until `written` is not [`Chain::PENDING`], the contents of `inn`
///   belong to the device. No reference to them is ever made, not even after it has returned them:
///   nothing prevents a device from writing there later.
#[pin_data]
pub(crate) struct Chain {
    out: KVVec<u8>,
    inn: KVVec<u8>,
    /// The number of chains that were added to its ring before it.
    number: Atomic<u64>,
    /// Bytes of `inn` that the device has written, or one of the two values below.
    written: Atomic<usize>,
    /// The life of the device that it was posted in.
    life: Atomic<u32>,
    /// Set when the ring has dropped the chain. Separate, because it must outlive the chain for
    /// that.
    done: Arc<Event>,
    handler: Option<Arc<dyn Handler>>,
}

/// What a device has written. It is only read by copying, and each copy is checked afterwards: a
/// device that violates the protocol may write there at any time.
///
/// # Invariants
///
/// `len` bytes from `start` on are valid for reads during `'c`.
#[derive(Clone, Copy)]
pub(crate) struct Written<'c> {
    start: *const u8,
    len: usize,
    _chain: PhantomData<&'c Chain>,
}

impl Written<'_> {
    /// The number of bytes.
    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// A copy of the value at an offset, in bytes. `None` if it exceeds what was written, or if it
    /// is not aligned as a `T` must be.
    pub(crate) fn read<T: FromBytes>(self, offset: usize) -> Option<T> {
        if offset.checked_add(size_of::<T>())? > self.len {
            return None;
        }
        let ptr = self.start.wrapping_add(offset).cast::<T>();
        // SAFETY: By the invariants and the check above these bytes are valid for reads, and the
        // pointer is aligned. Any bytes are a `T`. The access is volatile because the device may
        // write them at the same time.
        ptr.is_aligned().then(|| unsafe { ptr.read_volatile() })
    }
}

impl Chain {
    /// The device has not returned the chain.
    const PENDING: usize = usize::MAX;
    /// The device has been given up.
    const FAILED: usize = usize::MAX - 1;

    /// Set when the chain completes.
    pub(crate) fn done(&self) -> &Event {
        &self.done
    }

    /// Whether the chain has completed.
    pub(crate) fn is_complete(&self) -> bool {
        self.written.load(Acquire) != Self::PENDING
    }

    /// What the device has written, or `None` if it has been given up or has not
    /// returned the chain.
    pub(crate) fn reply(&self) -> Option<Written<'_>> {
        let written = self.written.load(Acquire);
        if written == Self::PENDING || written == Self::FAILED {
            return None;
        }
        // INVARIANT: The device may claim to have written more than the buffer holds. This is at
        // most the size of the buffer, which is valid as long as the chain. {drv-check-device}
        Some(Written {
            start: self.inn.as_ptr(),
            len: written.min(self.inn.len()),
            _chain: PhantomData,
        })
    }

    /// The life of the device that it was posted in; zero if it was not posted.
    pub(crate) fn life(&self) -> u32 {
        self.life.load(Relaxed)
    }

    /// Records the life that it is posted in.
    pub(super) fn set_life(&self, life: u32) {
        self.life.store(life, Relaxed);
    }

    /// The number of chains that were added to its ring before it; zero if it was not posted.
    pub(crate) fn number(&self) -> u64 {
        self.number.load(Relaxed)
    }

    /// Records that number, before the device can return the chain.
    pub(super) fn set_number(&self, number: u64) {
        self.number.store(number, Relaxed);
    }

    /// The request, which the device may read.
    pub(crate) fn request(&self) -> &[u8] {
        &self.out
    }

    /// Where the device may write its reply, and the size in bytes.
    pub(super) fn reply_buffer(&self) -> (*mut u8, usize) {
        (self.inn.as_ptr().cast_mut(), self.inn.len())
    }

    /// Completes the chain: the device has written this many bytes, or has been reset if `None`.
    pub(super) fn complete(self: Arc<Self>, written: Option<u32>) {
        let written = written.map_or(Self::FAILED, |written| written as usize);
        let done = self.done.clone();
        self.written.store(written, Release);
        if let Some(handler) = self.handler.clone() {
            handler.completed(self);
        } else {
            drop(self);
        }
        // Last: a waiting thread may reuse the chain once it has no other owner.
        done.set();
    }
}
