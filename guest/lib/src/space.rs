//! This process's address space on a device.
//!
//! It decides how long memory must live for each way to submit, and knows neither what
//! operations there are nor how calls are made.

use std::collections::VecDeque;
use std::os::fd::AsFd;

use rustix::io::Errno;
use virtio_hmm_spec::uapi::{Destination, MAX_SUBMIT};
use virtio_hmm_spec::wire::operation::Operation;

use crate::device::Device;
use crate::error::{Error, Result};
use crate::job::{Decode, Job, Outcome};
use crate::memory::{Migration, PageRange, PageState};
use crate::scope::Scope;
use crate::sys;
use crate::work::Work;

/// A device bound to the calling process.
///
/// It may be shared between threads. Closing it, by dropping it, ends the jobs that are
/// in flight and brings home the pages that live on the device. A process that is
/// forked off cannot use its parent's space: its calls fail with `EPERM`.
#[derive(Debug)]
pub struct Space {
    device: Device,
}

impl Space {
    pub(crate) fn new(device: Device) -> Self {
        Self { device }
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs a job and waits until it has ended.
    ///
    /// # Errors
    ///
    /// [`Error::Job`] when it did not end well; `EAGAIN` when as many jobs are in flight
    /// as the device takes, `ENODEV` or `EIO` when it is removed or broken.
    pub fn run<T>(&self, work: Work<'_, T>) -> Result<Outcome<T>> {
        self.scope(|scope| scope.submit(work)?.wait())
    }

    /// Runs many jobs, in any order and at the same time, and waits until all have ended.
    ///
    /// They are handed over in batches; if the device has no room for all of them, the
    /// rest follow as room is made. The results are in the order of the works.
    ///
    /// # Errors
    ///
    /// Of each job, as [`Space::run`] has them.
    pub fn run_all<'data, T>(
        &self,
        works: impl IntoIterator<Item = Work<'data, T>>,
    ) -> Vec<Result<Outcome<T>>> {
        let (operations, decodes): (Vec<_>, Vec<_>) =
            works.into_iter().map(Work::into_parts).unzip();
        let mut decodes = decodes.into_iter();
        let mut waiting = operations.as_slice();
        let mut running = VecDeque::new();
        let mut results = Vec::with_capacity(operations.len());
        loop {
            // SAFETY: the works' borrows outlive this call, and it returns only after
            // every job in `running` has ended: `Job` waits even when it is dropped.
            let submitted = match unsafe { self.submit_some(waiting) } {
                Ok(first_fences) => first_fences,
                // No room: that of the oldest job will do.
                Err(errno) if errno == Errno::AGAIN && !running.is_empty() => 0..0,
                Err(errno) => {
                    let rest = decodes.map(|_| Err(Error::system("submitting jobs", errno)));
                    results.extend(running.into_iter().map(Job::wait));
                    results.extend(rest);
                    return results;
                }
            };
            waiting = &waiting[submitted.clone().count()..];
            let jobs = submitted.zip(decodes.by_ref());
            running.extend(jobs.map(|(fence, decode)| Job::new(self, fence, decode)));
            match running.pop_front() {
                Some(job) => results.push(job.wait()),
                None => return results,
            }
        }
    }

    /// Lets jobs run on borrowed memory while the program goes on.
    ///
    /// ```no_run
    /// # fn main() -> Result<(), hmm::Error> {
    /// # let space = hmm::Device::open("/dev/hmm0")?.bind()?;
    /// use hmm::work;
    ///
    /// let words = vec![7_u64; 1 << 20];
    /// let mut unsorted: Vec<u64> = (0..1 << 20).rev().collect();
    /// let mut scratch = vec![0; unsorted.len()];
    /// let sum = space.scope(|scope| {
    ///     let sorting = scope.submit(work::sort(&mut unsorted, &mut scratch))?;
    ///     let sum = scope.submit(work::sum(&words))?.wait()?;
    ///     sorting.wait()?;
    ///     Ok::<_, hmm::Error>(sum.value)
    /// })?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// Returns when all jobs that were submitted in it have ended. What they borrow must
    /// therefore outlive the scope:
    ///
    /// ```compile_fail,E0597
    /// # fn run(space: &hmm::Space) {
    /// space.scope(|scope| {
    ///     let gone_too_early = vec![1_u64];
    ///     scope.submit(hmm::work::sum(&gone_too_early));
    /// });
    /// # }
    /// ```
    pub fn scope<'data, R>(
        &'data self,
        body: impl for<'scope> FnOnce(&'scope Scope<'scope, 'data>) -> R,
    ) -> R {
        Scope::enter(self, body)
    }

    /// Submits a job on any addresses and returns at once.
    ///
    /// # Safety
    ///
    /// Until the job has ended — [`Job::wait`] has returned its result or the `Job` has
    /// been dropped, but not forgotten — the memory that it writes must stay valid and
    /// be touched by nobody else, except through atomics of the same size for atomic
    /// operations. Memory that it only reads may change or go away: the job then reads
    /// what it finds or ends with a fault, and nothing else can happen.
    ///
    /// # Errors
    ///
    /// `EAGAIN` when as many jobs are in flight as the device takes, `ENODEV` or `EIO`
    /// when it is removed or broken.
    pub unsafe fn submit(&self, operation: impl Into<Operation>) -> Result<Job<'_>> {
        // SAFETY: the caller's promise is the one that is asked for.
        let fence = unsafe { self.submit_one(operation.into()) }?;
        Ok(Job::new(self, fence, Decode::RAW))
    }

    /// Submits up to [`MAX_SUBMIT`] jobs in one call and returns at once.
    ///
    /// The device may have room for fewer than asked: the first ones were submitted.
    ///
    /// # Safety
    ///
    /// As [`Space::submit`], for each job.
    ///
    /// # Errors
    ///
    /// As [`Space::submit`], when not even one was submitted.
    pub unsafe fn submit_all(&self, operations: &[Operation]) -> Result<Vec<Job<'_>>> {
        // SAFETY: the caller's promise is the one that is asked for.
        let fences = unsafe { self.submit_some(operations) }
            .map_err(|errno| Error::system("submitting jobs", errno))?;
        Ok(fences
            .map(|fence| Job::new(self, fence, Decode::RAW))
            .collect())
    }

    /// Submits one job: its fence.
    ///
    /// # Safety
    ///
    /// As [`Space::submit`].
    pub(crate) unsafe fn submit_one(&self, operation: Operation) -> Result<u64> {
        // SAFETY: the caller's promise is the one that is asked for.
        let fences = unsafe { self.submit_some(&[operation]) };
        fences
            .and_then(|mut fences| fences.next().ok_or(Errno::AGAIN))
            .map_err(|errno| Error::system("submitting a job", errno))
    }

    /// Submits as many jobs as fit into one call and onto the device: their fences.
    ///
    /// # Safety
    ///
    /// As [`Space::submit`], for each job.
    unsafe fn submit_some(
        &self,
        operations: &[Operation],
    ) -> std::result::Result<std::ops::Range<u64>, Errno> {
        if operations.is_empty() {
            return Ok(0..0);
        }
        let jobs: Vec<_> = operations
            .iter()
            .take(MAX_SUBMIT as usize)
            .map(Operation::encode)
            .collect();
        // SAFETY: the caller's promise is the one that is asked for.
        let submitted = unsafe { sys::submit(self.device.as_fd(), &jobs) }?;
        let first = submitted.first_fence;
        Ok(first..first + u64::from(submitted.count))
    }

    /// Moves the pages of a range to the device or back.
    ///
    /// Pages that cannot move stay where they are and are counted. What they hold does
    /// not change, and every access goes on to work: a page on the device that the CPU
    /// touches comes back by itself.
    ///
    /// # Errors
    ///
    /// `ENOMEM` when the guest is out of memory, `ENODEV` or `EIO` when the device is
    /// removed or broken.
    pub fn migrate(&self, range: PageRange, destination: Destination) -> Result<Migration> {
        if range.pages() == 0 {
            return Ok(Migration::default());
        }
        sys::migrate(
            self.device.as_fd(),
            range.address(),
            range.bytes(),
            destination,
        )
        .map(Migration::from)
        .map_err(|errno| Error::system("moving pages", errno))
    }

    /// Where the pages of a range of this process are now.
    ///
    /// # Errors
    ///
    /// `ENOMEM` when the guest is out of memory, `ENODEV` when the device is removed.
    pub fn residency(&self, range: PageRange) -> Result<Vec<PageState>> {
        self.device.residency_of(0, range)
    }
}
