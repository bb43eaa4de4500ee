//! The ioctls of `/dev/hmmN`, each as one function.
//!
//! The only file that makes system calls. It repeats a call that a signal
//! interrupted, and knows nothing of jobs' types, borrows or who waits for what.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::ioctl::{ioctl, Ioctl, IoctlOutput, Opcode};
use virtio_hmm_spec::uapi::{
    Bind, Call, Counters, Destination, Info, Migrate, Residency, Submit, Wait, VERSION,
};
use virtio_hmm_spec::wire::job::{JobDescriptor, JobReply};
use zerocopy::FromZeros;

/// A call with the structure that it passes both ways.
struct Request<'a, C>(&'a mut C);

// SAFETY: `C::CODE` is `_IOWR` of `C` itself, so the kernel reads and writes exactly
// the bytes of the `C` that `as_ptr` names, which is borrowed mutably for the call; all
// structures of the interface are plain data, valid with any bytes. Memory that an
// address *inside* the structure names is the business of the callers of `call`.
unsafe impl<C: Call> Ioctl for Request<'_, C> {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        Opcode::from(C::CODE)
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::from_mut(self.0).cast()
    }

    unsafe fn output_from_ptr(
        _output: IoctlOutput,
        _argument: *mut std::ffi::c_void,
    ) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// Carries out a call once.
///
/// # Safety
///
/// Memory that addresses inside the argument name must be valid for what the call
/// does with it; what a submitted job does is part of that.
unsafe fn call<C: Call>(file: BorrowedFd<'_>, argument: &mut C) -> Result<(), Errno> {
    // SAFETY: the implementation of `Ioctl` above describes the call's own argument;
    // the caller answers for memory named inside it.
    unsafe { ioctl(file, Request(argument)) }
}

/// Repeats `attempt` while signals interrupt it.
fn uninterrupted<T>(mut attempt: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match attempt() {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// [`Info`].
pub(crate) fn info(file: BorrowedFd<'_>) -> Result<Info, Errno> {
    let mut info = Info::new_zeroed();
    // SAFETY: the structure names no other memory.
    uninterrupted(|| unsafe { call(file, &mut info) })?;
    Ok(info)
}

/// [`Bind`].
pub(crate) fn bind(file: BorrowedFd<'_>) -> Result<(), Errno> {
    let mut bind = Bind {
        version: VERSION,
        flags: 0,
    };
    // SAFETY: the structure names no other memory. No job runs yet.
    uninterrupted(|| unsafe { call(file, &mut bind) })
}

/// [`Counters`].
pub(crate) fn counters(file: BorrowedFd<'_>) -> Result<Counters, Errno> {
    let mut counters = Counters::new_zeroed();
    // SAFETY: the structure names no other memory.
    uninterrupted(|| unsafe { call(file, &mut counters) })?;
    Ok(counters)
}

/// What [`submit`] did: the fence of the first job, and how many have one.
pub(crate) struct Submitted {
    pub(crate) first_fence: u64,
    pub(crate) count: u32,
}

/// [`Submit`].
///
/// # Safety
///
/// Until each submitted job has ended, the memory that it reads may change in no way
/// that its result may not show, and memory that it writes must be the job's alone.
pub(crate) unsafe fn submit(
    file: BorrowedFd<'_>,
    jobs: &[JobDescriptor],
) -> Result<Submitted, Errno> {
    let count = u32::try_from(jobs.len()).map_err(|_| Errno::INVAL)?;
    let mut submit = Submit {
        jobs: address_of(jobs.as_ptr()),
        count,
        flags: 0,
        first_fence: 0,
        submitted: 0,
        reserved: 0,
    };
    uninterrupted(|| {
        // SAFETY: `jobs` is only read, holds `count` descriptors and lives until the
        // call returns. The caller answers for what the jobs do.
        unsafe { call(file, &mut submit) }
    })?;
    Ok(Submitted {
        first_fence: submit.first_fence,
        count: submit.submitted,
    })
}

/// [`Wait`], until `deadline` if there is one.
pub(crate) fn wait(
    file: BorrowedFd<'_>,
    fence: u64,
    deadline: Option<Instant>,
) -> Result<JobReply, Errno> {
    let mut wait = Wait {
        fence,
        timeout: -1,
        result: JobReply::new_zeroed(),
    };
    uninterrupted(|| {
        wait.timeout = match deadline {
            None => -1,
            Some(deadline) => nanoseconds(deadline.saturating_duration_since(Instant::now())),
        };
        // SAFETY: the structure names no other memory.
        unsafe { call(file, &mut wait) }
    })?;
    Ok(wait.result)
}

/// [`Migrate`]: the structure with what has become of the pages.
pub(crate) fn migrate(
    file: BorrowedFd<'_>,
    address: u64,
    bytes: u64,
    destination: Destination,
) -> Result<Migrate, Errno> {
    let mut migrate = Migrate {
        address,
        bytes,
        destination: destination.raw(),
        flags: 0,
        moved: 0,
        skipped: 0,
        no_memory: 0,
    };
    // SAFETY: moving pages changes no byte of the process's memory.
    uninterrupted(|| unsafe { call(file, &mut migrate) })?;
    Ok(migrate)
}

/// [`Residency`] of as many pages as `states` has room for.
pub(crate) fn residency(
    file: BorrowedFd<'_>,
    pid: i32,
    address: u64,
    states: &mut [u8],
) -> Result<(), Errno> {
    let mut residency = Residency {
        pid,
        flags: 0,
        address,
        pages: states.len() as u64,
        states: address_of(states.as_mut_ptr()),
    };
    uninterrupted(|| {
        // SAFETY: the call writes `pages` bytes to `states`, which is borrowed mutably
        // and as long.
        unsafe { call(file, &mut residency) }
    })
}

/// A pointer as the interface passes it. The kernel and the device use it as they
/// would any address of the process, hence the exposed provenance.
pub(crate) fn address_of<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// A timeout as the interface passes it; so long a wait that it has no number is for ever.
fn nanoseconds(timeout: Duration) -> i64 {
    i64::try_from(timeout.as_nanos()).unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timeout_too_long_for_a_number_is_for_ever() {
        assert_eq!(nanoseconds(Duration::from_nanos(7)), 7);
        assert_eq!(nanoseconds(Duration::ZERO), 0);
        assert_eq!(nanoseconds(Duration::MAX), -1);
    }

    #[test]
    fn an_interrupted_call_is_repeated_and_another_error_is_not() {
        let mut answers = [Err(Errno::INTR), Err(Errno::INTR), Ok(3)].into_iter();
        assert_eq!(uninterrupted(|| answers.next().unwrap()), Ok(3));
        let mut answers = [Err(Errno::PERM), Ok(3)].into_iter();
        assert_eq!(uninterrupted(|| answers.next().unwrap()), Err(Errno::PERM));
    }
}
