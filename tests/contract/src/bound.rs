//! A device that is bound to this process, as rows use it.
//!
//! Whole pages are written and read by jobs, and compared byte for byte. It adds
//! nothing to the library but the words of areas and tags.

use std::ops::Range;
use std::time::Duration;

use anyhow::{bail, ensure, Result};
use hmm::spec::wire::operation::{AtomicAdd, Compare, Fill};
use hmm::{
    Counters, Destination, Device, Element, Error, Job, JobFailure, Migration, Operation,
    PageState, Place, Progress, Reason, Space, Status, Values,
};

use crate::area::{Area, Tag, PAGE};
use crate::row::cannot_run;

/// How long a job may take that waits for nothing but faults.
const JOB: Duration = Duration::from_secs(30);

/// How often pages are asked to move: somebody else may use one at that moment.
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
        let space = Device::open(format!("/dev/hmm{number}"))?.bind()?;
        Ok(Self { space })
    }

    /// What the library has for it.
    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    /// The counters now.
    pub(crate) fn counters(&self) -> Result<Counters> {
        Ok(self.space.device().counters()?)
    }

    /// Starts a job.
    pub(crate) fn start(&self, operation: impl Into<Operation>) -> Result<Job<'_>> {
        // SAFETY: rows use memory of areas only, which are no Rust objects, and buffers
        // that outlive the job, since every `Job` waits for its end.
        Ok(unsafe { self.space.submit(operation) }?)
    }

    /// Runs a job; that it fails is a result.
    pub(crate) fn run(
        &self,
        operation: impl Into<Operation>,
    ) -> Result<std::result::Result<Values, JobFailure>> {
        ended(self.start(operation)?)
    }

    /// The device writes whole pages.
    pub(crate) fn write(&self, area: &Area, pages: Range<usize>, tag: Tag) -> Result<()> {
        // In batches: the device takes so many jobs and no more.
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

    /// The device writes one page; that it fails is a result.
    pub(crate) fn try_write(
        &self,
        area: &Area,
        page: usize,
        tag: Tag,
    ) -> Result<std::result::Result<Values, JobFailure>> {
        self.run(fill(area, page, tag))
    }

    /// The device must not be able to write a page, for this reason.
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

    /// The device reads one page; that it fails is a result.
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

    /// The device must not be able to read a page, for this reason.
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
    pub(crate) fn move_there(&self, area: &Area, pages: Range<usize>) -> Result<()> {
        self.move_all(area, pages, Destination::Device, Place::Device)
    }

    /// Moves pages back home, all of them.
    pub(crate) fn move_home(&self, area: &Area, pages: Range<usize>) -> Result<()> {
        self.move_all(area, pages, Destination::System, Place::System)
    }

    fn move_all(
        &self,
        area: &Area,
        pages: Range<usize>,
        destination: Destination,
        place: Place,
    ) -> Result<()> {
        let mut last = Migration::default();
        for _ in 0..REQUESTS {
            last = self.migrate(area, pages.clone(), destination)?;
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

    /// Pages must be in this place.
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

/// How a job ended.
pub(crate) fn ended(job: Job<'_>) -> Result<std::result::Result<Values, JobFailure>> {
    match job.wait_timeout(JOB) {
        Ok(Progress::Ended(outcome)) => Ok(Ok(outcome.value)),
        Ok(Progress::Running(job)) => {
            // Waiting for it, as dropping does, would take for ever.
            std::mem::forget(job);
            bail!("a job did not end within {JOB:?}")
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
