// SPDX-License-Identifier: GPL-2.0

//! Spinlocks that interrupts take.

use kernel::{
    bindings,
    ffi::{c_char, c_ulong},
    sync::lock::{Backend, Lock},
};

pub mod poll;
pub mod srcu;

pub use crate::{global_lock, new_spinlock_irq};
pub use kernel::sync::*;
pub use srcu::Srcu;

extern "C" {
    fn linux_7_2_spin_lock_irqsave(lock: *mut bindings::spinlock_t) -> c_ulong;
    fn linux_7_2_spin_trylock_irqsave(lock: *mut bindings::spinlock_t, flags: *mut c_ulong)
        -> bool;
    fn linux_7_2_spin_unlock_irqrestore(lock: *mut bindings::spinlock_t, flags: c_ulong);
}

/// A spinlock with whose guard interrupts are disabled.
///
/// In Linux 7.3 interrupts stay disabled until the last guard of several is dropped. Here they are
/// as they were before once a guard is dropped, so guards of several such locks must be dropped in
/// the reverse order. The driver never has two.
pub type SpinLockIrq<T> = Lock<T, SpinLockIrqBackend>;

/// How a [`SpinLockIrq`] is taken.
pub struct SpinLockIrqBackend;

// SAFETY: The kernel's `spinlock_t` ensures that the lock has one owner at a time. `relock` is the
// default, which calls `lock`.
unsafe impl Backend for SpinLockIrqBackend {
    type State = bindings::spinlock_t;
    // Whether interrupts were enabled.
    type GuardState = c_ulong;

    #[inline]
    unsafe fn init(ptr: *mut Self::State, name: *const c_char, key: *mut bindings::lock_class_key) {
        // SAFETY: The caller promises that `ptr` is valid for writes, and that `name` and `key` are
        // valid from now on.
        unsafe { bindings::__spin_lock_init(ptr, name, key) }
    }

    #[inline]
    unsafe fn lock(ptr: *mut Self::State) -> Self::GuardState {
        // SAFETY: The caller promises that the lock is initialised.
        unsafe { linux_7_2_spin_lock_irqsave(ptr) }
    }

    #[inline]
    unsafe fn unlock(ptr: *mut Self::State, flags: &Self::GuardState) {
        // SAFETY: The caller promises to own the lock, so it is initialised and `flags` are what
        // taking it has returned.
        unsafe { linux_7_2_spin_unlock_irqrestore(ptr, *flags) }
    }

    #[inline]
    unsafe fn try_lock(ptr: *mut Self::State) -> Option<Self::GuardState> {
        let mut flags = 0;
        // SAFETY: The caller promises that the lock is initialised. `flags` is valid for writes.
        let is_taken = unsafe { linux_7_2_spin_trylock_irqsave(ptr, &mut flags) };
        is_taken.then_some(flags)
    }

    #[inline]
    unsafe fn assert_is_held(ptr: *mut Self::State) {
        // SAFETY: The caller promises that the lock is initialised.
        unsafe { bindings::spin_assert_is_held(ptr) }
    }
}

/// Initialises a [`SpinLockIrq`](crate::sync::SpinLockIrq).
#[macro_export]
macro_rules! new_spinlock_irq {
    ($inner:expr $(, $name:literal)? $(,)?) => {
        $crate::sync::SpinLockIrq::new(
            $inner,
            $crate::optional_name!($($name)?),
            $crate::static_lock_class!(),
        )
    };
}

/// Defines a lock that is a static; it may be a [`SpinLockIrq`](crate::sync::SpinLockIrq).
#[macro_export]
macro_rules! global_lock {
    {
        $(#[$meta:meta])* $pub:vis
        unsafe(uninit) static $name:ident: SpinLockIrq<$valuety:ty> = $value:expr;
    } => {
        #[doc = ::core::concat!(
            "Backend type used by [`",
            ::core::stringify!($name),
            "`](static@",
            ::core::stringify!($name),
            ")."
        )]
        #[allow(non_camel_case_types, unreachable_pub)]
        $pub enum $name {}

        impl $crate::sync::lock::GlobalLockBackend for $name {
            const NAME: &'static $crate::str::CStr = $crate::c_str!(::core::stringify!($name));
            type Item = $valuety;
            type Backend = $crate::sync::SpinLockIrqBackend;

            fn get_lock_class() -> ::core::pin::Pin<&'static $crate::sync::LockClassKey> {
                $crate::static_lock_class!()
            }
        }

        $(#[$meta])*
        $pub static $name: $crate::sync::lock::GlobalLock<$name> = {
            // Defined here to be outside the unsafe scope.
            let init: $valuety = $value;

            // SAFETY:
            // * The user of this macro promises to initialize the macro before use.
            // * We are only generating one static with this backend type.
            unsafe { $crate::sync::lock::GlobalLock::new(init) }
        };
    };
    { $($lock:tt)* } => {
        $crate::linux_7_2::global_lock! { $($lock)* }
    };
}
