//! Calls as programs make them, once and without the library, and the readiness of a file.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use hmm::spec::uapi::{Call, Cancel, Wait, WaitAny};
use hmm::spec::wire::job::JobReply;
use hmm::Status;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use crate::bound::Bound;
use crate::sys;

fn raw<C: Call>(file: BorrowedFd<'_>, argument: &mut C) -> std::result::Result<(), Errno> {
    // SAFETY: the code is that of the structure, and memory that it names lives.
    let result = unsafe { sys::control(file, C::CODE, argument) };
    result
        .map(drop)
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NOTSUP))
}

/// Cancels a job.
pub(crate) fn cancel(bound: &Bound, fence: u64) -> std::result::Result<(), Errno> {
    let mut cancel = Cancel {
        fence,
        flags: 0,
        reserved: 0,
    };
    raw(bound.space().as_fd(), &mut cancel)
}

fn no_reply() -> JobReply {
    JobReply {
        status: 0.into(),
        reason: 0.into(),
        address: 0.into(),
        access: 0.into(),
        faults: 0.into(),
        values: [0.into(); 4],
        nanoseconds: 0.into(),
        system_bytes: 0.into(),
        device_bytes: 0.into(),
    }
}

/// Waits for any of these jobs. Returns a fence and how its job ended.
pub(crate) fn any(
    bound: &Bound,
    fences: &[u64],
    deadline: i64,
) -> std::result::Result<(u64, Option<Status>), Errno> {
    let mut wait = WaitAny {
        fences: fences.as_ptr().expose_provenance() as u64,
        count: u32::try_from(fences.len()).map_err(|_| Errno::INVAL)?,
        flags: 0,
        deadline,
        fence: 0,
        result: no_reply(),
    };
    raw(bound.space().as_fd(), &mut wait)?;
    Ok((wait.fence, Status::from_raw(wait.result.status.get())))
}

/// The events that a file is ready for, within a time.
pub(crate) fn ready(file: impl AsFd, within: Duration) -> Result<PollFlags> {
    let all = PollFlags::IN | PollFlags::ERR | PollFlags::HUP;
    let file = file.as_fd();
    let mut files = [PollFd::from_borrowed_fd(file, all)];
    let timeout = Timespec::try_from(within).context("a timeout")?;
    poll(&mut files, Some(&timeout)).context("poll")?;
    Ok(files[0].revents())
}

/// Waits for a job. Returns how it ended.
pub(crate) fn wait(
    bound: &Bound,
    fence: u64,
    deadline: i64,
) -> std::result::Result<Option<Status>, Errno> {
    let mut wait = Wait {
        fence,
        deadline,
        result: no_reply(),
    };
    raw(bound.space().as_fd(), &mut wait)?;
    Ok(Status::from_raw(wait.result.status.get()))
}
