// SPDX-License-Identifier: GPL-2.0

//! Sleepable read-copy-update.

use kernel::{
    bindings,
    error::to_result,
    ffi::{c_char, c_int},
    prelude::*,
    sync::LockClassKey,
    types::{NotThreadSafe, Opaque},
};

// Without lockdep its types have no fields.
#[allow(improper_ctypes)]
extern "C" {
    fn linux_7_2_init_srcu(
        srcu: *mut bindings::srcu_struct,
        name: *const c_char,
        key: *mut bindings::lock_class_key,
    ) -> c_int;
    fn linux_7_2_srcu_read_lock(srcu: *mut bindings::srcu_struct) -> c_int;
    fn linux_7_2_srcu_read_unlock(srcu: *mut bindings::srcu_struct, index: c_int);
}

/// Initialises a [`Srcu`](crate::sync::Srcu).
#[macro_export]
macro_rules! new_srcu {
    ($($name:literal)?) => {
        $crate::sync::Srcu::new($crate::optional_name!($($name)?), $crate::static_lock_class!())
    };
}

/// Readers that may sleep, for whose end others can wait.
///
/// # Invariants
///
/// The `struct srcu_struct` is initialised.
#[pin_data(PinnedDrop)]
pub struct Srcu {
    #[pin]
    inner: Opaque<bindings::srcu_struct>,
}

// SAFETY: A `struct srcu_struct` may be used by any thread.
unsafe impl Send for Srcu {}
// SAFETY: A `struct srcu_struct` may be used by several threads at a time.
unsafe impl Sync for Srcu {}

impl Srcu {
    /// One without readers.
    pub fn new(name: &'static CStr, key: Pin<&'static LockClassKey>) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            // INVARIANT: On success it is initialised.
            inner <- Opaque::try_ffi_init(|slot: *mut bindings::srcu_struct| {
                // SAFETY: `slot` is valid for writes and will not move. `name` and `key` stay.
                to_result(unsafe { linux_7_2_init_srcu(slot, name.as_char_ptr(), key.as_ptr()) })
            }),
        })
    }

    /// Begins to read.
    #[inline]
    pub fn read_lock(&self) -> Guard<'_> {
        // SAFETY: By the invariants it is initialised.
        let index = unsafe { linux_7_2_srcu_read_lock(self.inner.get()) };
        // INVARIANT: It was just returned.
        Guard {
            srcu: self,
            index,
            _not_send: NotThreadSafe,
        }
    }

    /// Waits for all readers that have begun before this call.
    #[inline]
    pub fn synchronize(&self) {
        // SAFETY: By the invariants it is initialised.
        unsafe { bindings::synchronize_srcu(self.inner.get()) };
    }
}

#[pinned_drop]
impl PinnedDrop for Srcu {
    fn drop(self: Pin<&mut Self>) {
        // If a guard was leaked this waits for ever. Without it, cleanup_srcu_struct() would leave
        // callbacks that use memory which is freed.
        self.synchronize();
        // SAFETY: By the invariants it is initialised.
        unsafe { bindings::srcu_barrier(self.inner.get()) };
        // SAFETY: By the invariants it is initialised. Nothing uses it any more.
        unsafe { bindings::cleanup_srcu_struct(self.inner.get()) };
    }
}

/// A reader, until it is dropped.
///
/// # Invariants
///
/// `index` is what `srcu_read_lock()` has returned for `srcu`.
#[must_use = "reading ends when it is dropped"]
pub struct Guard<'a> {
    srcu: &'a Srcu,
    index: c_int,
    _not_send: NotThreadSafe,
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the invariants this is the reader that `srcu_read_lock()` has returned.
        unsafe { linux_7_2_srcu_read_unlock(self.srcu.inner.get(), self.index) };
    }
}
