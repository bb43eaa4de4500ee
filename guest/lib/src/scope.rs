//! Jobs that run while the program goes on, on borrowed memory.
//!
//! Works as [`std::thread::scope`] does: what the jobs borrow outlives the scope, and
//! the scope does not end before they have, whatever becomes of their handles.

use std::collections::BTreeSet;
use std::fmt;
use std::marker::PhantomData;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::job::{self, Decode, Outcome, Progress};
use crate::space::Space;
use crate::sys;
use crate::work::Work;

/// Where jobs may be submitted that borrow memory from outside; see [`Space::scope`].
///
/// The first lifetime is that of the scope, the second that of what it borrows.
#[derive(Debug)]
pub struct Scope<'scope, 'data: 'scope> {
    space: &'scope Space,
    /// Fences whose end has not been awaited.
    open: Mutex<BTreeSet<u64>>,
    // Both lifetimes are invariant, else a scope could be taken for one that borrows
    // less long.
    scope: PhantomData<&'scope mut &'scope ()>,
    data: PhantomData<&'data mut &'data ()>,
}

impl<'scope, 'data> Scope<'scope, 'data> {
    pub(crate) fn enter<R>(
        space: &'data Space,
        body: impl for<'any> FnOnce(&'any Scope<'any, 'data>) -> R,
    ) -> R {
        /// Waits for all jobs when `body` returns or panics.
        struct EndAll<'a>(&'a Space, &'a Mutex<BTreeSet<u64>>);

        impl Drop for EndAll<'_> {
            fn drop(&mut self) {
                let mut open = self.1.lock().unwrap_or_else(PoisonError::into_inner);
                while let Some(fence) = open.pop_first() {
                    job::end(self.0, fence);
                }
            }
        }

        let scope = Scope {
            space,
            open: Mutex::default(),
            scope: PhantomData,
            data: PhantomData,
        };
        let _end_all = EndAll(space, &scope.open);
        body(&scope)
    }

    /// Submits a job and returns at once.
    ///
    /// # Errors
    ///
    /// `EAGAIN` when as many jobs are in flight as the device takes, `ENODEV` or `EIO`
    /// when it is removed or broken.
    pub fn submit<T>(&'scope self, work: Work<'scope, T>) -> Result<ScopedJob<'scope, 'data, T>> {
        let (operation, decode) = work.into_parts();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the job's memory is borrowed for `'scope`, and `enter` does not return
        // before every fence in `open` has ended; nothing between here and the insertion
        // can panic or leave.
        let job = unsafe { self.space.submit_one(operation) }?;
        open.insert(job);
        Ok(ScopedJob {
            scope: self,
            fence: job,
            decode,
        })
    }
}

/// A job of a [`Scope`]. Dropping it only gives up the result.
#[must_use = "a job's result tells whether it ended well"]
pub struct ScopedJob<'scope, 'data, T> {
    scope: &'scope Scope<'scope, 'data>,
    fence: u64,
    decode: Decode<T>,
}

impl<T> ScopedJob<'_, '_, T> {
    /// Waits until the job has ended.
    ///
    /// # Errors
    ///
    /// As [`Job::wait`](crate::Job::wait).
    pub fn wait(self) -> Result<Outcome<T>> {
        match self.wait_until(None)? {
            Progress::Ended(outcome) => Ok(outcome),
            // There was no deadline to miss.
            Progress::Running(_) => Err(Error::system("waiting for a job", Errno::TIME)),
        }
    }

    /// Waits until the job has ended or `timeout` has passed. Zero only looks.
    ///
    /// # Errors
    ///
    /// As [`Job::wait`](crate::Job::wait); running out of time is none.
    pub fn wait_timeout(self, timeout: Duration) -> Result<Progress<T, Self>> {
        self.wait_until(Instant::now().checked_add(timeout))
    }

    fn wait_until(self, deadline: Option<Instant>) -> Result<Progress<T, Self>> {
        match sys::wait(self.scope.space.device().as_fd(), self.fence, deadline) {
            Err(Errno::TIME) => Ok(Progress::Running(self)),
            Err(errno) if job::may_still_run(errno) => {
                Err(Error::system("waiting for a job", errno))
            }
            answer => {
                let mut open = self
                    .scope
                    .open
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                open.remove(&self.fence);
                let reply = answer.map_err(|errno| Error::system("waiting for a job", errno))?;
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
