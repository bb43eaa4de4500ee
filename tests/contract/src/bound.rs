//! A device that is bound to this process, with the operations that rows use.
//!
//! Jobs write and read whole pages, which are compared byte for byte. It adds only areas and tags
//! to the library.

use std::ops::Range;
use std::sync::atomic::Ordering;

use anyhow::{bail, ensure, Result};
use hmm::spec::wire::operation::{AtomicAdd, Compare, Fill};
use hmm::{
    Counters, Destination, Device, Element, Error, Job, JobFailure, Migration, Operation,
    PageState, Place, Progress, Reason, Space, Status, Values,
};

use crate::area::{Area, Tag, PAGE};
use crate::kernel::{patience, until};
use crate::row::cannot_run;

/// How often pages are asked to move: another thread or the kernel may use one at that moment.
const REQUESTS: usize = 20;

/// A device bound to this process.
#[derive(Debug)]
pub(crate) struct Bound {
    space: Space,
}

impl Bound {
    /// Binds the first device.
    pub(crate) fn new() -> Result<Self> {
        Self::number(0)
    }

    /// Binds the first and the second device.
    pub(crate) fn two() -> Result<(Self, Self)> {
        if Device::list().len() < 2 {
            return Err(cannot_run("the machine has one device only"));
        }
        Ok((Self::number(0)?, Self::number(1)?))
    }

    /// Binds the device with this number.
    pub(crate) fn number(number: usize) -> Result<Self> {
        Self::to(Device::open(format!("/dev/hmm{number}"))?)
    }

    /// Binds a device that is open.
    pub(crate) fn to(device: Device) -> Result<Self> {
        let space = device.bind()?;
        Ok(Self { space })
    }

    /// The library's address space of it.
    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    /// The counters now.
    pub(crate) fn counters(&self) -> Result<Counters> {
        Ok(self.space.device().counters()?)
    }

    /// Starts a job.
    pub(crate) fn start(&self, operation: impl Into<Operation>) -> Result<Job<'_>> {
        // SAFETY: rows use memory of areas only, which are no Rust objects, and buffers that
        // outlive the job, since every `Job` waits for its end.
        Ok(unsafe { self.space.submit(operation) }?)
    }

    /// Runs a job; a failed job is a result, not an error.
    pub(crate) fn run(
        &self,
        operation: impl Into<Operation>,
    ) -> Result<std::result::Result<Values, JobFailure>> {
        ended(self.start(operation)?)
    }

    /// The device writes whole pages.
    pub(crate) fn write(&self, area: &Area, pages: Range<usize>, tag: Tag) -> Result<()> {
        // In batches: the device takes a limited number of jobs.
        for chunk in pages.collect::<Vec<_>>().chunks(64) {
            let jobs = chunk
                .iter()
                .map(|&page| Ok((page, self.start(fill(area, page, tag))?)))
                .collect::<Result<Vec<_>>>()?;
            for (page, job) in jobs {
                if let Err(failure) = ended(job)? {
                    bail!("the device cannot write page {page}: {failure}");
                }
            }
        }
        Ok(())
    }

    /// The device writes one page; a failed job is a result, not an error.
    pub(crate) fn try_write(
        &self,
        area: &Area,
        page: usize,
        tag: Tag,
    ) -> Result<std::result::Result<Values, JobFailure>> {
        self.run(fill(area, page, tag))
    }

    /// Checks that the device may not write a page, for this reason.
    pub(crate) fn refuse_write(&self, area: &Area, page: usize, reason: Reason) -> Result<()> {
        refused("write", area, page, reason, self.try_write(area, page, 1)?)
    }

    /// The device reads whole pages.
    pub(crate) fn expect(&self, area: &Area, pages: Range<usize>, tag: Tag) -> Result<()> {
        let wanted = area.words(pages.clone(), tag);
        let bytes = (pages.len() * PAGE) as u64;
        let compare = Compare {
            left: wanted.as_ptr().expose_provenance() as u64,
            right: area.address(pages.start) as u64,
            bytes,
        };
        match self.run(compare)? {
            Err(failure) => bail!("the device cannot read pages {pages:?}: {failure}"),
            Ok([offset, ..]) if offset < bytes => bail!(
                "the device reads something else at byte {} of page {} than tag {tag} has",
                offset % PAGE as u64,
                pages.start as u64 + offset / PAGE as u64
            ),
            Ok(_) => Ok(()),
        }
    }

    /// The device reads one page; a failed job is a result, not an error.
    pub(crate) fn try_read(
        &self,
        area: &Area,
        page: usize,
    ) -> Result<std::result::Result<Values, JobFailure>> {
        let address = area.address(page) as u64;
        self.run(Compare {
            left: address,
            right: address,
            bytes: PAGE as u64,
        })
    }

    /// Checks that the device may not read a page, for this reason.
    pub(crate) fn refuse_read(&self, area: &Area, page: usize, reason: Reason) -> Result<()> {
        refused("read", area, page, reason, self.try_read(area, page)?)
    }

    /// Asks for pages to be moved.
    pub(crate) fn migrate(
        &self,
        area: &Area,
        pages: Range<usize>,
        destination: Destination,
    ) -> Result<Migration> {
        Ok(self.space.migrate(area.range(pages), destination)?)
    }

    /// Moves pages to the device, all of them.
    pub(crate) fn move_to_device(&self, area: &Area, pages: Range<usize>) -> Result<()> {
        self.move_all(area, pages, Destination::Device, Place::Device)
    }

    /// Moves pages back to system memory, all of them.
    pub(crate) fn move_to_system(&self, area: &Area, pages: Range<usize>) -> Result<()> {
        self.move_all(area, pages, Destination::System, Place::System)
    }

    /// Moves pages to the device, including those that have no memory yet.
    pub(crate) fn populate(&self, area: &Area, pages: Range<usize>) -> Result<()> {
        let range = area.range(pages.clone());
        let populate = || Ok(self.space.populate(range)?);
        self.all_moved(area, pages, Place::Device, populate)
    }

    fn move_all(
        &self,
        area: &Area,
        pages: Range<usize>,
        destination: Destination,
        place: Place,
    ) -> Result<()> {
        let migrate = || self.migrate(area, pages.clone(), destination);
        self.all_moved(area, pages.clone(), place, migrate)
    }

    fn all_moved(
        &self,
        area: &Area,
        pages: Range<usize>,
        place: Place,
        migrate: impl Fn() -> Result<Migration>,
    ) -> Result<()> {
        let mut last = Migration::default();
        for _ in 0..REQUESTS {
            last = migrate()?;
            let states = self.states(area, pages.clone())?;
            if states.iter().all(|state| state.place() == place) {
                return Ok(());
            }
        }
        let states = self.states(area, pages.clone())?;
        let there = states.iter().filter(|state| state.place() == place).count();
        bail!(
            "of pages {pages:?} only {there} are in {place:?} memory after {REQUESTS} requests; \
             the last one: {last:?}"
        )
    }

    /// Where pages are.
    pub(crate) fn states(&self, area: &Area, pages: Range<usize>) -> Result<Vec<PageState>> {
        Ok(self.space.residency(area.range(pages))?)
    }

    /// Checks that pages are in this place.
    pub(crate) fn expect_place(
        &self,
        area: &Area,
        pages: Range<usize>,
        place: Place,
    ) -> Result<()> {
        for (page, state) in pages.clone().zip(self.states(area, pages)?) {
            ensure!(
                state.place() == place,
                "page {page} is in {:?} instead of {place:?}",
                state.place()
            );
        }
        Ok(())
    }

    /// How many of these pages are mapped on the device.
    pub(crate) fn mapped(&self, area: &Area, pages: Range<usize>) -> Result<usize> {
        let states = self.states(area, pages)?;
        Ok(states.iter().filter(|state| state.is_mapped()).count())
    }
}

/// The job that writes a page.
pub(crate) fn fill(area: &Area, page: usize, tag: Tag) -> Fill {
    Fill {
        destination: area.address(page) as u64,
        bytes: PAGE as u64,
        pattern: area.word(page, tag),
    }
}

/// The job that adds to a word of a page.
pub(crate) fn add(area: &Area, page: usize, index: usize, operand: u64, repeat: u64) -> AtomicAdd {
    AtomicAdd {
        address: (area.address(page) + index * 8) as u64,
        element: Element::U64,
        operand,
        repeat,
    }
}

/// A job that does not end by itself, on a word of a page.
pub(crate) fn endless<'bound>(
    bound: &'bound Bound,
    area: &Area,
    page: usize,
) -> Result<Job<'bound>> {
    let job = bound.start(add(area, page, 0, 1, 1 << 60))?;
    begun(area, page)?;
    Ok(job)
}

/// Waits until a job has changed a word.
pub(crate) fn begun(area: &Area, page: usize) -> Result<()> {
    until("the job has begun", || {
        Ok(area.counter(page, 0).load(Ordering::Relaxed) > 0)
    })
}

/// Checks that a job has been cancelled.
pub(crate) fn cancelled(end: std::result::Result<Values, JobFailure>) -> Result<()> {
    match end {
        Err(failure) if failure.status == Status::Cancelled => Ok(()),
        other => bail!("it was to end as cancelled: {other:?}"),
    }
}

/// How a job ended.
pub(crate) fn ended(job: Job<'_>) -> Result<std::result::Result<Values, JobFailure>> {
    match job.wait_timeout(patience()) {
        Ok(Progress::Ended(outcome)) => Ok(Ok(outcome.value)),
        Ok(Progress::Running(job)) => {
            // Dropping it would wait for its end, for ever.
            std::mem::forget(job);
            bail!("a job did not end within {:?}", patience())
        }
        Err(Error::Job(failure)) => Ok(Err(failure)),
        Err(error) => Err(error.into()),
    }
}

fn refused(
    what: &str,
    area: &Area,
    page: usize,
    reason: Reason,
    result: std::result::Result<Values, JobFailure>,
) -> Result<()> {
    let Err(failure) = result else {
        bail!("the device could {what} page {page}, which it must not");
    };
    let at = failure.address & !(PAGE as u64 - 1);
    ensure!(
        failure.status == Status::Fault
            && failure.reason == Some(reason)
            && at == area.address(page) as u64,
        "that the device may not {what} page {page} was to be told as {reason:?} there: {failure}"
    );
    Ok(())
}
