//! An open device, and what it tells of itself.

use std::ffi::{c_char, c_int, CStr, OsStr};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;

use hmm::{calls, Counters, Device, Info};

use crate::{negative, plain, store, HmmDevice};

/// hmm_open() - Opens a device, such as "/dev/hmm0".
///
/// @path: the device's node
/// @device: receives the device, which belongs to the caller until hmm_close()
///
/// Return: zero, or a negative errno of open(2), such as -ENOENT without such
/// a device and -EACCES without the right to use it. @device is then
/// unchanged.
#[no_mangle]
pub unsafe extern "C" fn hmm_open(path: *const c_char, device: *mut *mut HmmDevice) -> c_int {
    if path.is_null() || device.is_null() {
        return -libc::EFAULT;
    }
    // SAFETY: it is not null, and the header asks for a string.
    let path = unsafe { CStr::from_ptr(path) };
    match Device::open(OsStr::from_bytes(path.to_bytes())) {
        Err(error) => negative(&error),
        Ok(opened) => {
            let opened = Box::into_raw(Box::new(HmmDevice(opened)));
            // SAFETY: it is not null, and the header asks for a place to write to.
            unsafe { device.write(opened) };
            0
        }
    }
}

/// hmm_close() - Closes a device. Its jobs end, and its pages return to system
///     memory.
///
/// @device: the device, or NULL, with which nothing happens
///
/// No other function may use the device at the same time or later. Memory that
/// its jobs write may be used after this, unless a forked child still has the
/// file open: a program that forks waits for its jobs before.
#[no_mangle]
pub unsafe extern "C" fn hmm_close(device: *mut HmmDevice) {
    if !device.is_null() {
        // SAFETY: the header asks for what hmm_open() returned, and for no use at the same time or
        // later.
        drop(unsafe { Box::from_raw(device) });
    }
}

/// hmm_fd() - The device's file, for poll(2) and the like.
///
/// @device: the device
///
/// It is readable when a job has ended whose reply has not been fetched. It
/// belongs to the device: the caller must not close it.
///
/// Return: the descriptor, or -EFAULT when @device is NULL.
#[no_mangle]
pub unsafe extern "C" fn hmm_fd(device: *const HmmDevice) -> c_int {
    // SAFETY: the header asks for what hmm_open() returned, or null.
    unsafe { device.as_ref() }.map_or(-libc::EFAULT, |device| device.0.as_fd().as_raw_fd())
}

/// hmm_bind() - Binds a device to the calling process: its addresses become the
///     device's.
///
/// @device: the device
///
/// Jobs, migrations and residency need it. A forked child cannot use its
/// parent's device. If the device failed and was started anew, a further call
/// binds again; what the device held is lost.
///
/// Return: zero; -EBUSY when it is bound already, -ENOSPC when as many processes
/// are bound as the device or the user may have, -EAGAIN while the device is
/// about to be started anew, -EPROTO when the driver has another version,
/// -ENODEV when the device has been removed, -EIO when it is broken.
#[no_mangle]
pub unsafe extern "C" fn hmm_bind(device: *const HmmDevice) -> c_int {
    // SAFETY: the header asks for what hmm_open() returned, or null.
    match unsafe { device.as_ref() } {
        None => -libc::EFAULT,
        Some(device) => plain(calls::bind(&device.0)),
    }
}

/// hmm_info() - Describes a device: its kind, its sizes and its state.
///
/// @device: the device, which need not be bound
/// @info: receives the description
///
/// Return: zero; -ENODEV when the device has been removed, -EIO when it stopped
/// answering, -ENOTTY when the file is no such device or its driver is older
/// than this library.
#[no_mangle]
pub unsafe extern "C" fn hmm_info(device: *const HmmDevice, info: *mut Info) -> c_int {
    // SAFETY: the header asks for what hmm_open() returned, or null.
    match unsafe { device.as_ref() } {
        None => -libc::EFAULT,
        // SAFETY: the header asks for a place to write to, or null.
        Some(device) => unsafe { store(info, device.0.info()) },
    }
}

/// hmm_counters() - Reads the counters of driver and device.
///
/// @device: the device, which need not be bound
/// @counters: receives the counters
///
/// Return: as hmm_info().
#[no_mangle]
pub unsafe extern "C" fn hmm_counters(device: *const HmmDevice, counters: *mut Counters) -> c_int {
    // SAFETY: the header asks for what hmm_open() returned, or null.
    match unsafe { device.as_ref() } {
        None => -libc::EFAULT,
        // SAFETY: the header asks for a place to write to, or null.
        Some(device) => unsafe { store(counters, device.0.counters()) },
    }
}
