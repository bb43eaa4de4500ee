// SPDX-License-Identifier: GPL-2.0

//! Memory for one request and its reply, on its way to the device and back.
//!
//! Once a [`Chain`] is posted the ring holds a reference of its own, so that the memory
//! outlives whoever waits for it; its contents can be read again when the device has
//! returned it, or has been reset.
//!
//! Knows nothing of rings, nor of what requests mean.

use crate::wait::Event;
use core::pin::Pin;
use kernel::{
    alloc::Flags,
    prelude::*,
    sync::{
        atomic::{Acquire, Atomic, Relaxed, Release},
        Arc, UniqueArc,
    },
};

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

    /// What the ring posts.
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

    /// The request, for the device to read.
    pub(super) fn out(&self) -> &[u8] {
        &self.out
    }

    /// Where the device may write its reply, and how much.
    pub(super) fn room(&self) -> (*mut u8, usize) {
        (self.inn.as_ptr().cast_mut(), self.inn.len())
    }

    /// Ends the loan: the device has written so much, or has been reset if `None`.
    pub(super) fn complete(self: Arc<Self>, written: Option<u32>) {
        let written = written.map_or(Self::FAILED, |written| written as usize);
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
