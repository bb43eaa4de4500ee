//! Jobs that run while the program goes on, on borrowed memory.
//!
//! It works like [`std::thread::scope`]: what the jobs borrow outlives the scope, and the scope
//! does not end before the jobs have, whatever becomes of their handles.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::job;
use crate::outcome::{Decode, Ended, Outcome, Progress};
use crate::submit;
use crate::sys;
use crate::work::Work;

/// Submits jobs that borrow memory from outside the scope; see
/// [`Space::scope`](crate::Space::scope).
///
/// The first lifetime is that of the scope, the second that of the borrowed memory.
#[derive(Debug)]
pub struct Scope<'scope, 'data: 'scope> {
    device: &'scope Device,
    /// Fences of jobs whose end has not been awaited.
    open: Mutex<BTreeSet<u64>>,
    // Both lifetimes are invariant: otherwise a scope could be used as one with shorter borrows.
    scope: PhantomData<&'scope mut &'scope ()>,
    data: PhantomData<&'data mut &'data ()>,
}

impl<'scope, 'data> Scope<'scope, 'data> {
    pub(crate) fn enter<R>(
        device: &'data Device,
        body: impl for<'any> FnOnce(&'any Scope<'any, 'data>) -> R,
    ) -> R {
        /// Waits for all jobs when `body` returns or panics.
        struct EndAll<'a>(&'a Device, &'a Mutex<BTreeSet<u64>>);

        impl Drop for EndAll<'_> {
            fn drop(&mut self) {
                let mut open = self.1.lock().unwrap_or_else(PoisonError::into_inner);
                while let Some(fence) = open.pop_first() {
                    job::end(self.0, fence);
                }
            }
        }

        let scope = Scope {
            device,
            open: Mutex::default(),
            scope: PhantomData,
            data: PhantomData,
        };
        let _end_all = EndAll(device, &scope.open);
        body(&scope)
    }

    /// Submits a job and returns at once.
    ///
    /// # Errors
    ///
    /// `EAGAIN` when as many jobs are in flight as the device takes, `ENODEV` or `EIO`
    /// when it is removed or broken.
    pub fn submit<T>(&'scope self, work: Work<'scope, T>) -> Result<ScopedJob<'scope, 'data, T>> {
        self.submit_told(work, None)
    }

    /// Like [`Scope::submit`]. When the job ends, in whatever way, an eventfd is incremented.
    ///
    /// # Errors
    ///
    /// As [`Scope::submit`]; `EINVAL` when the descriptor is no eventfd.
    pub fn submit_notifying<T>(
        &'scope self,
        work: Work<'scope, T>,
        eventfd: impl AsFd,
    ) -> Result<ScopedJob<'scope, 'data, T>> {
        self.submit_told(work, Some(eventfd.as_fd()))
    }

    fn submit_told<T>(
        &'scope self,
        work: Work<'scope, T>,
        eventfd: Option<BorrowedFd<'_>>,
    ) -> Result<ScopedJob<'scope, 'data, T>> {
        let (operation, decode) = work.into_parts();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the job's memory is borrowed for `'scope`, and `enter` does not return
        // before every fence in `open` has ended; nothing between here and the insertion
        // can panic or leave.
        let job = unsafe { submit::one(self.device, operation, eventfd) }?;
        open.insert(job);
        Ok(ScopedJob {
            scope: self,
            fence: job,
            decode,
        })
    }

    /// Waits until one of these jobs has ended, and removes it from the list. `None` if there are
    /// none.
    ///
    /// # Errors
    ///
    /// As [`Space::wait_any`](crate::Space::wait_any).
    pub fn wait_any<T>(
        &'scope self,
        jobs: &mut Vec<ScopedJob<'scope, 'data, T>>,
    ) -> Result<Option<Ended<T>>> {
        self.wait_any_until(jobs, None)
    }

    /// Like [`Scope::wait_any`], for at most `timeout`. `None` also if no job has ended by then.
    /// Zero returns at once.
    ///
    /// # Errors
    ///
    /// As [`Space::wait_any`](crate::Space::wait_any).
    pub fn wait_any_timeout<T>(
        &'scope self,
        jobs: &mut Vec<ScopedJob<'scope, 'data, T>>,
        timeout: Duration,
    ) -> Result<Option<Ended<T>>> {
        self.wait_any_until(jobs, Instant::now().checked_add(timeout))
    }

    fn wait_any_until<T>(
        &'scope self,
        jobs: &mut Vec<ScopedJob<'scope, 'data, T>>,
        deadline: Option<Instant>,
    ) -> Result<Option<Ended<T>>> {
        job::any(
            self.device,
            jobs,
            |job| job.fence,
            deadline,
            |job, reply| {
                self.fetched(job.fence);
                job.decode.outcome(&reply)
            },
        )
    }

    /// Notes that the end of a job has been awaited.
    fn fetched(&self, fence: u64) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(&fence);
    }
}

/// A job of a [`Scope`]. Dropping it only discards the result.
#[must_use = "a job's result tells whether it ended well"]
pub struct ScopedJob<'scope, 'data, T> {
    scope: &'scope Scope<'scope, 'data>,
    fence: u64,
    decode: Decode<T>,
}

impl<T> ScopedJob<'_, '_, T> {
    /// The job's fence, which names it in `Wait`.
    pub fn fence(&self) -> u64 {
        self.fence
    }

    /// Asks the job to end early, as [`Job::cancel`](crate::Job::cancel) does.
    ///
    /// # Errors
    ///
    /// As [`Job::cancel`](crate::Job::cancel).
    pub fn cancel(&self) -> Result<()> {
        sys::cancel(self.scope.device.as_fd(), self.fence)
            .map_err(|errno| self.scope.device.error("cancelling a job", errno))
    }

    /// Waits until the job has ended.
    ///
    /// # Errors
    ///
    /// As [`Job::wait`](crate::Job::wait).
    pub fn wait(self) -> Result<Outcome<T>> {
        match self.wait_until(None)? {
            Progress::Ended(outcome) => Ok(outcome),
            // This cannot happen: the wait has no deadline.
            Progress::Running(_) => Err(Error::system("waiting for a job", Errno::TIME)),
        }
    }

    /// Waits until the job has ended or `timeout` has passed. Zero returns at once.
    ///
    /// # Errors
    ///
    /// As [`Job::wait`](crate::Job::wait). A timeout is no error.
    pub fn wait_timeout(self, timeout: Duration) -> Result<Progress<T, Self>> {
        self.wait_until(Instant::now().checked_add(timeout))
    }

    fn wait_until(self, deadline: Option<Instant>) -> Result<Progress<T, Self>> {
        match sys::wait(self.scope.device.as_fd(), self.fence, deadline) {
            Err(Errno::TIME) => Ok(Progress::Running(self)),
            Err(errno) if job::may_still_run(errno) => {
                Err(self.scope.device.error("waiting for a job", errno))
            }
            answer => {
                self.scope.fetched(self.fence);
                let reply =
                    answer.map_err(|errno| self.scope.device.error("waiting for a job", errno))?;
                self.decode.outcome(&reply).map(Progress::Ended)
            }
        }
    }
}

impl<T> fmt::Debug for ScopedJob<'_, '_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedJob")
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}
