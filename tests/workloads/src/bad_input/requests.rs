//! Raw calls, as the library would not make them, and their arguments.
//!
//! It does not know which calls and jobs are wrong.

use std::os::fd::BorrowedFd;

use anyhow::{Context, Result};
use hmm::spec::uapi::{Call, Cancel, Migrate, Residency, Submit, Wait, WaitAny};
use hmm::spec::wire::job::{JobDescriptor, JobReply};
use hmm::Operation;
use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use crate::sys;

/// An address at which nothing is ever mapped: the kernel keeps the lowest 64 KiB free.
pub(super) const UNMAPPED: u64 = 0x8000;

/// An address that no process can have: bits 47 to 63 differ.
pub(super) const NOT_CANONICAL: u64 = 1 << 62;

/// An address of the kernel's own half.
pub(super) const KERNEL: u64 = 0xffff_8880_0000_0000;

/// Makes a call of any code with any structure.
pub(super) fn raw(file: BorrowedFd<'_>, code: u32, argument: &mut [u8]) -> Result<(), Errno> {
    assert!(
        size_in(code) <= argument.len(),
        "the structure is too short"
    );
    let address = argument.as_mut_ptr().expose_provenance();
    // SAFETY: the structure is borrowed mutably and, as was just checked, not shorter than the code
    // says. Memory that the structures of this folder name is a `Staircase`, memory of the caller
    // that outlives the call, or not mapped; jobs work on the first and are awaited before it is
    // gone.
    unsafe { sys::raw_ioctl(file, code, address) }
}

/// The size of the structure that a request code has in its third byte and the bits above.
pub(super) fn size_in(code: u32) -> usize {
    const BITS: u32 = (1 << 14) - 1;
    ((code >> 16) & BITS) as usize
}

/// An operation as a job of this process.
pub(super) fn descriptor(operation: impl Into<Operation>) -> JobDescriptor {
    operation.into().encode()
}

/// Submits one job.
pub(super) fn submit(job: &JobDescriptor) -> Submit {
    Submit {
        jobs: std::ptr::from_ref(job).expose_provenance() as u64,
        count: 1,
        flags: 0,
        first_fence: 0,
        submitted: 0,
        eventfd: 0,
    }
}

/// Waits for a job, for ever.
pub(super) fn wait(fence: u64) -> Wait {
    Wait {
        fence,
        deadline: -1,
        result: JobReply::new_zeroed(),
    }
}

/// Waits for any of several jobs, for ever.
pub(super) fn wait_any(fences: &[u64]) -> WaitAny {
    WaitAny {
        fences: address_of(fences),
        count: u32::try_from(fences.len()).unwrap_or(u32::MAX),
        flags: 0,
        deadline: -1,
        fence: 0,
        result: JobReply::new_zeroed(),
    }
}

/// Cancels a job.
pub(super) fn cancel(fence: u64) -> Cancel {
    Cancel {
        fence,
        flags: 0,
        reserved: 0,
    }
}

/// Moves pages to the device.
pub(super) fn migrate(address: u64, bytes: u64) -> Migrate {
    Migrate {
        address,
        bytes,
        destination: 1,
        flags: 0,
        moved: 0,
        skipped: 0,
        no_memory: 0,
        reached: 0,
    }
}

/// Looks where pages are: as many as there is room for.
pub(super) fn residency(address: u64, states: &mut [u8]) -> Residency {
    Residency {
        pid: 0,
        flags: 0,
        address,
        pages: states.len() as u64,
        states: states.as_mut_ptr().expose_provenance() as u64,
    }
}

/// The address of memory.
pub(super) fn address_of<T>(memory: &[T]) -> u64 {
    memory.as_ptr().expose_provenance() as u64
}

/// Runs a job as it is. Returns its fence and how it ended.
pub(super) fn complete(file: BorrowedFd<'_>, job: &JobDescriptor) -> Result<(u64, JobReply)> {
    let mut submit = submit(job);
    raw(file, Submit::CODE, submit.as_mut_bytes()).context("submitting a job")?;
    let mut wait = wait(submit.first_fence);
    loop {
        match raw(file, Wait::CODE, wait.as_mut_bytes()) {
            Err(Errno::INTR) => {}
            answer => {
                answer.context("waiting for a job")?;
                return Ok((submit.first_fence, wait.result));
            }
        }
    }
}
