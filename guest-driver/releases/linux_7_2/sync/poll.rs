// SPDX-License-Identifier: GPL-2.0

//! Wait queues of files that are polled, which may be dropped where sleeping is forbidden.

use core::{mem::ManuallyDrop, ops::Deref};
use kernel::{
    alloc::AllocError,
    bindings,
    prelude::*,
    sync::{CondVar, LockClassKey},
    types::Opaque,
};

pub use kernel::sync::poll::*;

/// A [`PollCondVar`] in memory of its own. Dropping it does not wait for a grace period of RCU, in
/// which pollers may still look at it: its memory does.
pub struct PollCondVarBox {
    inner: ManuallyDrop<Pin<KBox<Inner>>>,
}

#[pin_data]
#[repr(C)]
struct Inner {
    #[pin]
    condvar: PollCondVar,
    rcu: Opaque<bindings::callback_head>,
}

// SAFETY: A `PollCondVar` may be sent to another thread, and `rcu` is not used before the end.
unsafe impl Send for Inner {}
// SAFETY: A `PollCondVar` may be used by any thread, and `rcu` is not used before the end.
unsafe impl Sync for Inner {}

impl PollCondVarBox {
    /// One without pollers.
    ///
    /// # Errors
    ///
    /// If there is no memory.
    pub fn new(name: &'static CStr, key: Pin<&'static LockClassKey>) -> Result<Self, AllocError> {
        let inner = KBox::pin_init(
            pin_init!(Inner {
                condvar <- PollCondVar::new(name, key),
                rcu: Opaque::uninit(),
            }),
            GFP_KERNEL,
        );
        Ok(Self {
            inner: ManuallyDrop::new(inner.map_err(|_| AllocError)?),
        })
    }
}

impl Deref for PollCondVarBox {
    type Target = PollCondVar;

    fn deref(&self) -> &PollCondVar {
        &self.inner.condvar
    }
}

impl Drop for PollCondVarBox {
    fn drop(&mut self) {
        // A `PollCondVar` has no field but a `CondVar`, and that none but its wait queue that takes
        // any room: both are all of what contains them.
        const_assert!(size_of::<PollCondVar>() == size_of::<CondVar>());
        const_assert!(size_of::<CondVar>() == size_of::<bindings::wait_queue_head>());

        // SAFETY: It was not taken out before, and it is not used again.
        let inner = unsafe { ManuallyDrop::take(&mut self.inner) };
        // SAFETY: The value is not moved, and it is not freed as such: what its destructor does, and
        // waiting for a grace period, is done below.
        let inner = KBox::into_raw(unsafe { Pin::into_inner_unchecked(inner) });
        // SAFETY: `inner` is valid. Its condition variable is a wait queue, as asserted above.
        unsafe { bindings::__wake_up_pollfree((&raw mut (*inner).condvar).cast()) };
        // SAFETY: `inner` is valid, so its field is in bounds; an `Opaque` is what it contains.
        let rcu = Opaque::cast_into(unsafe { &raw const (*inner).rcu });
        // SAFETY: `inner` was allocated by kmalloc, which kvfree() frees, and is not used again.
        // `rcu` is within it.
        unsafe { bindings::kvfree_call_rcu(rcu, inner.cast()) };
    }
}
