//! The ioctls of `/dev/hmmN`, each as one function.
//!
//! The only file that makes system calls. It repeats a call that a signal interrupted, unless the
//! function's name says otherwise. It knows nothing of the types of jobs, of borrows or of waiting
//! threads.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use std::os::fd::AsRawFd;

use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::ioctl::{ioctl, Ioctl, IoctlOutput, Opcode};
use rustix::time::{clock_gettime, ClockId};
use virtio_hmm_spec::uapi::{
    submit_flags, Bind, BindProcess, Call, Cancel, Counters, Destination, Info, Migrate, Residency,
    SpaceCounters, Submit, Wait, WaitAny, VERSION,
};
use virtio_hmm_spec::wire::job::{JobDescriptor, JobReply};
use zerocopy::FromZeros;

/// A call with the structure that it passes in and out.
struct Request<'a, C>(&'a mut C);

// SAFETY: `C::CODE` is `_IOWR` of `C` itself, so the kernel reads and writes exactly the bytes of
// the `C` that `as_ptr` names, which is borrowed mutably for the call; all structures of the
// interface are plain data, valid with any bytes. For memory that an address *inside* the structure
// names, the callers of `call` answer.
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
/// Memory that addresses inside the argument name must be valid for what the call does with it,
/// including what a submitted job does.
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

/// Whether polling tells an error: the device has lost the space of the file, or was removed.
pub(crate) fn is_broken(file: BorrowedFd<'_>) -> bool {
    events(file).contains(PollFlags::ERR)
}

/// Whether polling tells that the bound process has ended, or the device was removed.
pub(crate) fn is_over(file: BorrowedFd<'_>) -> bool {
    events(file).contains(PollFlags::HUP)
}

/// What polling tells now, of what it tells without being asked.
fn events(file: BorrowedFd<'_>) -> PollFlags {
    let mut files = [PollFd::from_borrowed_fd(file, PollFlags::empty())];
    let polled = uninterrupted(|| poll(&mut files, Some(&Timespec::default())));
    polled.map_or(PollFlags::empty(), |_| files[0].revents())
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

/// [`BindProcess`].
pub(crate) fn bind_process(
    file: BorrowedFd<'_>,
    pidfd: BorrowedFd<'_>,
    memory: BorrowedFd<'_>,
) -> Result<(), Errno> {
    let mut bind = BindProcess {
        version: VERSION,
        flags: 0,
        pidfd: pidfd.as_raw_fd(),
        memory: memory.as_raw_fd(),
    };
    // SAFETY: the structure names no memory. No job runs yet.
    uninterrupted(|| unsafe { call(file, &mut bind) })
}

/// [`SpaceCounters`].
pub(crate) fn space_counters(file: BorrowedFd<'_>) -> Result<SpaceCounters, Errno> {
    let mut counters = SpaceCounters::new_zeroed();
    // SAFETY: the structure names no other memory.
    uninterrupted(|| unsafe { call(file, &mut counters) })?;
    Ok(counters)
}

/// [`Counters`].
pub(crate) fn counters(file: BorrowedFd<'_>) -> Result<Counters, Errno> {
    let mut counters = Counters::new_zeroed();
    // SAFETY: the structure names no other memory.
    uninterrupted(|| unsafe { call(file, &mut counters) })?;
    Ok(counters)
}

/// The result of [`submit`]: the fence of the first job, and how many jobs have one.
pub(crate) struct Submitted {
    pub(crate) first_fence: u64,
    pub(crate) count: u32,
}

/// [`Submit`]; the eventfd, if there is one, is incremented at the end of each job.
///
/// # Safety
///
/// Until each submitted job has ended, the memory that it reads may change only in ways that its
/// result may show, and memory that it writes must be the job's alone.
pub(crate) unsafe fn submit(
    file: BorrowedFd<'_>,
    jobs: &[JobDescriptor],
    eventfd: Option<BorrowedFd<'_>>,
) -> Result<Submitted, Errno> {
    let count = u32::try_from(jobs.len()).map_err(|_| Errno::INVAL)?;
    let mut submit = Submit {
        jobs: address_of(jobs.as_ptr()),
        count,
        flags: eventfd.map_or(0, |_| submit_flags::EVENTFD),
        first_fence: 0,
        submitted: 0,
        eventfd: eventfd.map_or(0, |file| file.as_raw_fd()),
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
    uninterrupted(|| wait_once(file, fence, deadline))
}

/// The same, which a signal may end with `EINTR`.
pub(crate) fn wait_once(
    file: BorrowedFd<'_>,
    fence: u64,
    deadline: Option<Instant>,
) -> Result<JobReply, Errno> {
    let mut wait = Wait {
        fence,
        deadline: point_in_time(deadline),
        result: JobReply::new_zeroed(),
    };
    // SAFETY: the structure names no other memory.
    unsafe { call(file, &mut wait) }?;
    Ok(wait.result)
}

/// [`WaitAny`] of jobs with these fences, until `deadline` if there is one. Returns the fence of
/// the job that has ended, and its result.
pub(crate) fn wait_any(
    file: BorrowedFd<'_>,
    fences: &[u64],
    deadline: Option<Instant>,
) -> Result<(u64, JobReply), Errno> {
    uninterrupted(|| wait_any_once(file, fences, deadline))
}

/// The same, which a signal may end with `EINTR`.
pub(crate) fn wait_any_once(
    file: BorrowedFd<'_>,
    fences: &[u64],
    deadline: Option<Instant>,
) -> Result<(u64, JobReply), Errno> {
    let mut wait = WaitAny {
        fences: address_of(fences.as_ptr()),
        count: u32::try_from(fences.len()).map_err(|_| Errno::INVAL)?,
        flags: 0,
        deadline: point_in_time(deadline),
        fence: 0,
        result: JobReply::new_zeroed(),
    };
    // SAFETY: `fences` is only read, is as long as `count` says, and lives until the call returns.
    unsafe { call(file, &mut wait) }?;
    Ok((wait.fence, wait.result))
}

/// [`Cancel`].
pub(crate) fn cancel(file: BorrowedFd<'_>, fence: u64) -> Result<(), Errno> {
    let mut cancel = Cancel {
        fence,
        flags: 0,
        reserved: 0,
    };
    // SAFETY: the structure names no other memory. That the job ends early changes nothing for its
    // memory, which it uses until its end is fetched.
    uninterrupted(|| unsafe { call(file, &mut cancel) })
}

/// [`Migrate`]; returns the structure with the results.
pub(crate) fn migrate(
    file: BorrowedFd<'_>,
    address: u64,
    bytes: u64,
    destination: Destination,
    flags: u32,
) -> Result<Migrate, Errno> {
    let mut migrate = Migrate {
        address,
        bytes,
        destination: destination.raw(),
        flags,
        moved: 0,
        skipped: 0,
        no_memory: 0,
        reached: 0,
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

/// A pointer as the interface passes it. The kernel and the device use it like any address of the
/// process, hence the exposed provenance.
pub(crate) fn address_of<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

/// A deadline as the interface passes it: negative means none.
fn point_in_time(deadline: Option<Instant>) -> i64 {
    let Some(deadline) = deadline else {
        return -1;
    };
    // An `Instant` has no number, only a distance from now.
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u32::try_from(now.tv_nsec).unwrap_or(0);
    let left = deadline.saturating_duration_since(Instant::now());
    after(Duration::new(seconds, nanoseconds), left)
}

/// The nanoseconds of the time `left` after `now`; a time too late for a number becomes none.
fn after(now: Duration, left: Duration) -> i64 {
    let sum = now.checked_add(left).map(|sum| sum.as_nanos());
    sum.and_then(|sum| i64::try_from(sum).ok()).unwrap_or(-1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_deadline_too_late_for_a_number_is_for_ever() {
        let now = Duration::new(3, 5);
        assert_eq!(after(now, Duration::from_nanos(7)), 3_000_000_012);
        assert_eq!(after(now, Duration::ZERO), 3_000_000_005);
        assert_eq!(after(now, Duration::MAX), -1);
        assert_eq!(after(now, Duration::from_secs(1 << 40)), -1);
        assert_eq!(point_in_time(None), -1);
    }

    #[test]
    fn a_pipe_without_a_reader_is_broken_and_one_with_a_reader_is_not() {
        let (reader, writer) = std::io::pipe().unwrap();
        assert!(!is_broken(writer.as_fd()));
        drop(reader);
        assert!(is_broken(writer.as_fd()));
    }

    #[test]
    fn a_deadline_is_a_point_in_time() {
        let now = Instant::now();
        let one = point_in_time(Some(now + Duration::from_secs(60)));
        let other = point_in_time(Some(now + Duration::from_secs(61)));
        // The two clocks are read one after the other.
        let between = other - one;
        assert!((500_000_000..1_500_000_000).contains(&between), "{between}");
    }

    #[test]
    fn an_interrupted_call_is_repeated_and_another_error_is_not() {
        let mut answers = [Err(Errno::INTR), Err(Errno::INTR), Ok(3)].into_iter();
        assert_eq!(uninterrupted(|| answers.next().unwrap()), Ok(3));
        let mut answers = [Err(Errno::PERM), Ok(3)].into_iter();
        assert_eq!(uninterrupted(|| answers.next().unwrap()), Err(Errno::PERM));
    }
}
