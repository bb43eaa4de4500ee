// SPDX-License-Identifier: GPL-2.0

//! Interrupt handlers that still run when a virtio device has been reset.
//!
//! Finding: "A virtio device without PCI may be interrupted while its queues are deleted". When it
//! is fixed, delete this file and `virtio_hmm_synchronize_callbacks` in `quirks.c`, and call
//! `virtio_reset_device()` instead.

use crate::sys as bindings;

/// Resets a device. When this returns, no callback of its queues is running, and there will be
/// none until the device is started again.
///
/// # Safety
///
/// The device must be valid, and stay so meanwhile. The caller must be allowed to sleep, must not
/// be a callback of the device, and must hold no lock that a callback takes.
pub(crate) unsafe fn reset_device(device: *mut bindings::virtio_device) {
    // SAFETY: The caller promises that the device is valid, that this may sleep and that it is not
    // a callback of the device.
    unsafe { bindings::virtio_reset_device(device) };
    // SAFETY: The caller promises that the device is valid, and that callbacks do not wait for the
    // caller.
    unsafe { bindings::virtio_hmm_synchronize_callbacks(device) };
}
