//! Submits jobs. The callers ensure that their memory lives long enough.

use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use virtio_hmm_spec::uapi::MAX_SUBMIT;
use virtio_hmm_spec::wire::operation::Operation;

use crate::device::Device;
use crate::error::Result;
use crate::sys;

/// Submits one job and returns its fence.
///
/// # Safety
///
/// As [`Space::submit`](crate::Space::submit).
pub(crate) unsafe fn one(
    device: &Device,
    operation: Operation,
    eventfd: Option<BorrowedFd<'_>>,
) -> Result<u64> {
    // SAFETY: the caller promises what `some` asks for.
    let fences = unsafe { some(device, &[operation], eventfd) };
    fences
        .and_then(|mut fences| fences.next().ok_or(Errno::AGAIN))
        .map_err(|errno| device.error("submitting a job", errno))
}

/// Submits as many jobs as fit into one call and onto the device, and returns their fences.
///
/// # Safety
///
/// As [`Space::submit`](crate::Space::submit), for each job.
pub(crate) unsafe fn some(
    device: &Device,
    operations: &[Operation],
    eventfd: Option<BorrowedFd<'_>>,
) -> std::result::Result<Range<u64>, Errno> {
    if operations.is_empty() {
        return Ok(0..0);
    }
    let jobs: Vec<_> = operations
        .iter()
        .take(MAX_SUBMIT as usize)
        .map(Operation::encode)
        .collect();
    // SAFETY: the caller promises what `sys::submit` asks for.
    let submitted = unsafe { sys::submit(device.as_fd(), &jobs, eventfd) }?;
    let first = submitted.first_fence;
    Ok(first..first + u64::from(submitted.count))
}
