//! libhmm: the library for programs in the guest, `guest/lib`, for C and for what can call C.
//!
//! `hmm.h` is generated from this crate (`cargo xtask headers`). The documentation of the functions
//! is therefore that of the header, in the words of C. Structures that cross to the driver are those
//! of `virtio_hmm.h`.
//!
//! Functions do no more than to turn pointers into references, and errors into negative errnos. A
//! panic would be a bug of ours. It could not unwind into C: `extern "C"` ends the process.
#![expect(
    clippy::missing_safety_doc,
    reason = "the header says what each pointer must be, and to C every function is unsafe"
)]

pub mod device;
pub mod jobs;
pub mod pages;
pub mod text;

use std::ffi::c_int;

use hmm::Error;

/// struct hmm_device - An open device
///
/// Made by hmm_open(), and freed by hmm_close().
#[derive(Debug)]
pub struct HmmDevice(hmm::Device);

/// The negative errno of an error.
fn negative(error: &Error) -> c_int {
    // Without an errno, the driver has answered with a number that this library does not know.
    -error.errno().unwrap_or(libc::EPROTO)
}

/// Stores a result. The caller of the library need not have initialised the place.
///
/// # Safety
///
/// `place` is null, or valid for a write of a `T`.
unsafe fn store<T>(place: *mut T, result: Result<T, Error>) -> c_int {
    match result {
        Err(error) => negative(&error),
        Ok(_) if place.is_null() => -libc::EFAULT,
        Ok(value) => {
            // SAFETY: the caller promises that it is valid for the write.
            unsafe { place.write(value) };
            0
        }
    }
}

/// Zero, or the negative errno.
fn plain(result: Result<(), Error>) -> c_int {
    match result {
        Ok(()) => 0,
        Err(error) => negative(&error),
    }
}
