//! This process's address space on a device.
//!
//! It decides how long memory must live for each way to submit. It knows neither the operations nor
//! how calls are made.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use virtio_hmm_spec::uapi::{migrate_flags, Destination};
use virtio_hmm_spec::wire::operation::Operation;

use crate::calls;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::job::{self, Job};
use crate::memory::{Migration, PageRange, PageState};
use crate::outcome::{Decode, Ended, Outcome};
use crate::scope::Scope;
use crate::submit;
use crate::sys;
use crate::work::Work;

/// A device bound to the calling process.
///
/// Threads may share it. Dropping it closes it, ends the jobs that are in flight and moves the
/// pages on the device back to system memory. A forked process cannot use its parent's space: its
/// calls fail with `EPERM`.
#[derive(Debug)]
pub struct Space {
    device: Device,
}

impl Device {
    /// Binds the device to the calling process, whose addresses the device uses from now on.
    ///
    /// # Errors
    ///
    /// `EPROTO` when the driver has another version, `ENOSPC` when as many processes are bound as
    /// the device takes.
    pub fn bind(self) -> Result<Space> {
        sys::bind(self.as_fd())
            .map_err(|errno| self.error("binding this process to the device", errno))?;
        Ok(Space { device: self })
    }
}

impl Space {
    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Binds to the calling process again after the device was given up and restarted. What the
    /// device held is lost.
    ///
    /// # Errors
    ///
    /// `EAGAIN` while the device has not been restarted, `EIO` when it will not be, `EBUSY` when
    /// nothing was lost.
    pub fn bind_again(&self) -> Result<()> {
        sys::bind(self.device.as_fd()).map_err(|errno| {
            self.device
                .error("binding this process to the device again", errno)
        })
    }

    /// Runs a job and waits until it has ended.
    ///
    /// # Errors
    ///
    /// [`Error::Job`] when it did not succeed; `EAGAIN` when as many jobs are in flight as the
    /// device takes, `ENODEV` or `EIO` when it is removed or broken.
    pub fn run<T>(&self, work: Work<'_, T>) -> Result<Outcome<T>> {
        self.scope(|scope| scope.submit(work)?.wait())
    }

    /// Runs many jobs, in any order and at the same time, and waits until all have ended.
    ///
    /// They are submitted in batches. If the device has no room for all of them, the rest follow as
    /// jobs end. The results are in the order of the works.
    ///
    /// # Errors
    ///
    /// For each job, those of [`Space::run`].
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
            let submitted = match unsafe { submit::some(&self.device, waiting, None) } {
                Ok(first_fences) => first_fences,
                // No room: wait until the oldest job has ended.
                Err(errno) if errno == Errno::AGAIN && !running.is_empty() => 0..0,
                Err(errno) => {
                    let rest = decodes.map(|_| Err(self.device.error("submitting jobs", errno)));
                    results.extend(running.into_iter().map(Job::wait));
                    results.extend(rest);
                    return results;
                }
            };
            waiting = &waiting[submitted.clone().count()..];
            let jobs = submitted.zip(decodes.by_ref());
            running.extend(jobs.map(|(fence, decode)| Job::new(&self.device, fence, decode)));
            match running.pop_front() {
                Some(job) => results.push(job.wait()),
                None => return results,
            }
        }
    }

    /// Lets jobs run on borrowed memory while the program continues.
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
    /// It returns when all jobs that were submitted in it have ended. What they borrow must
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
        Scope::enter(&self.device, body)
    }

    /// Submits a job on any addresses and returns at once.
    ///
    /// # Safety
    ///
    /// The memory that the job writes must stay valid until the job has ended: until [`Job::wait`]
    /// has returned its result or the `Job` has been dropped, but not forgotten. Until then nothing
    /// else may access that memory, except through atomics of the same size for atomic operations.
    /// Memory that the job only reads may change or go away: the job then reads what it finds or
    /// ends with a fault, and nothing else can happen.
    ///
    /// # Errors
    ///
    /// `EAGAIN` when as many jobs are in flight as the device takes, `ENODEV` or `EIO`
    /// when it is removed or broken.
    pub unsafe fn submit(&self, operation: impl Into<Operation>) -> Result<Job<'_>> {
        // SAFETY: the caller promises what `submit::one` asks for.
        let fence = unsafe { submit::one(&self.device, operation.into(), None) }?;
        Ok(Job::new(&self.device, fence, Decode::RAW))
    }

    /// Like [`Space::submit`]. When the job ends, in whatever way, an eventfd is incremented.
    ///
    /// The descriptor may be closed as soon as this returns.
    ///
    /// # Safety
    ///
    /// As [`Space::submit`].
    ///
    /// # Errors
    ///
    /// As [`Space::submit`]; `EINVAL` when the descriptor is no eventfd.
    pub unsafe fn submit_notifying(
        &self,
        operation: impl Into<Operation>,
        eventfd: impl AsFd,
    ) -> Result<Job<'_>> {
        // SAFETY: the caller promises what `submit::one` asks for.
        let fence = unsafe { submit::one(&self.device, operation.into(), Some(eventfd.as_fd())) }?;
        Ok(Job::new(&self.device, fence, Decode::RAW))
    }

    /// Waits until one of these jobs has ended, and removes it from the list. `None` if there are
    /// none.
    ///
    /// If several have ended, it takes the first one in the list. Only the first
    /// [`MAX_WAIT`](crate::spec::uapi::MAX_WAIT) jobs of the list are considered.
    ///
    /// ```no_run
    /// # use hmm::{Device, Job, Operation};
    /// # fn run(space: &hmm::Space, operations: [Operation; 3]) -> Result<(), hmm::Error> {
    /// let mut jobs = Vec::new();
    /// for operation in operations {
    ///     // SAFETY: what these operations write is theirs alone.
    ///     jobs.push(unsafe { space.submit(operation) }?);
    /// }
    /// // The first answer will do.
    /// if let Some(first) = space.wait_any(&mut jobs)? {
    ///     println!("job {}: {:?}", first.fence, first.result);
    /// }
    /// for job in &jobs {
    ///     job.cancel()?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// A job that did not succeed is a result here, and no error. `ENODEV` or `EIO` when the device
    /// is removed or broken; `ENOENT` when a job does not belong to this space.
    pub fn wait_any<'space, T>(
        &'space self,
        jobs: &mut Vec<Job<'space, T>>,
    ) -> Result<Option<Ended<T>>> {
        self.wait_any_until(jobs, None)
    }

    /// Like [`Space::wait_any`], for at most `timeout`. `None` also if no job has ended by then.
    /// Zero returns at once.
    ///
    /// # Errors
    ///
    /// As [`Space::wait_any`].
    pub fn wait_any_timeout<'space, T>(
        &'space self,
        jobs: &mut Vec<Job<'space, T>>,
        timeout: Duration,
    ) -> Result<Option<Ended<T>>> {
        self.wait_any_until(jobs, Instant::now().checked_add(timeout))
    }

    fn wait_any_until<'space, T>(
        &'space self,
        jobs: &mut Vec<Job<'space, T>>,
        deadline: Option<Instant>,
    ) -> Result<Option<Ended<T>>> {
        // Jobs of different files may have the same fence.
        if jobs.iter().any(|job| !job.is_of(&self.device)) {
            return Err(Error::system(
                "waiting for one of several jobs",
                Errno::NOENT,
            ));
        }
        job::any(&self.device, jobs, Job::fence, deadline, |job, reply| {
            job.fetched(&reply)
        })
    }

    /// Submits up to [`MAX_SUBMIT`](crate::spec::uapi::MAX_SUBMIT) jobs in one call and returns at once.
    ///
    /// The device may have room for fewer than asked: then only the first ones were submitted.
    ///
    /// # Safety
    ///
    /// As [`Space::submit`], for each job.
    ///
    /// # Errors
    ///
    /// As [`Space::submit`], when none was submitted.
    pub unsafe fn submit_all(&self, operations: &[Operation]) -> Result<Vec<Job<'_>>> {
        // SAFETY: the caller promises what `submit::some` asks for.
        let fences = unsafe { submit::some(&self.device, operations, None) }
            .map_err(|errno| self.device.error("submitting jobs", errno))?;
        Ok(fences
            .map(|fence| Job::new(&self.device, fence, Decode::RAW))
            .collect())
    }

    /// Moves the pages of a range to the device or back.
    ///
    /// Pages that cannot move stay where they are and are counted. Their contents do not change,
    /// and every access continues to work: a page on the device returns by itself when the CPU
    /// touches it. Addresses without a page yet are skipped; [`Self::populate`] includes them.
    ///
    /// # Errors
    ///
    /// `ENOMEM` when the guest is out of memory, `ENODEV` or `EIO` when the device is
    /// removed or broken.
    pub fn migrate(&self, range: PageRange, destination: Destination) -> Result<Migration> {
        calls::migrate(&self.device, range, destination, 0)
    }

    /// Moves the pages of a range to the device, and makes zero pages there for addresses that have
    /// none yet.
    ///
    /// # Errors
    ///
    /// As [`Self::migrate`].
    pub fn populate(&self, range: PageRange) -> Result<Migration> {
        calls::migrate(
            &self.device,
            range,
            Destination::Device,
            migrate_flags::POPULATE,
        )
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

/// The file for polling: it is readable when a job has ended whose result has not been fetched.
impl AsFd for Space {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.device.as_fd()
    }
}
