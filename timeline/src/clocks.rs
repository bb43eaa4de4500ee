//! One clock for a guest and a device.
//!
//! The two clocks run at the same speed, because a guest's is made of the host's, but begin at
//! different times. A job tells how far they are apart: the driver submits it before the device can
//! have it, and gets it back after the device has ended it. Every job narrows the difference, from both
//! sides.

use std::collections::HashMap;

use crate::device::{Device, Event};
use crate::ftrace::RESOLUTION;
use crate::guest::{Guest, What};

/// How far two clocks are apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Difference {
    /// What to add to the device's time to have the guest's, in nanoseconds.
    pub nanoseconds: i64,
    /// By how much that may be wrong.
    pub uncertainty: u64,
    /// The number of jobs that both have seen.
    pub jobs: usize,
}

/// Why there is no such difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No job was seen by both.
    #[error("guest and device have seen no job in common; were both traced at the same time, and is it this device's file?")]
    NoJob,
    /// A job was ended before it was submitted, whatever the difference.
    #[error("the two clocks do not run at the same speed: they cannot be brought together by one difference")]
    Drift,
}

impl Difference {
    /// The difference between the clocks of a guest and of its device with this number.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn find(guest: &Guest, number: u32, device: &Device) -> Result<Self, Error> {
        let mut submitted = HashMap::new();
        let mut completed = HashMap::new();
        for event in guest.events.iter().filter(|event| event.device == number) {
            match event.what {
                What::Submit { job, .. } => submitted.insert(job, event.at),
                // A job that a reset has ended says nothing.
                What::Complete { job, status } if status >= 0 => {
                    completed.insert(job, event.at.saturating_add(RESOLUTION))
                }
                _ => None,
            };
        }
        let (mut least, mut most) = (i128::MIN, i128::MAX);
        let mut jobs = 0;
        for record in &device.records {
            let at = i128::from(record.at);
            match record.event {
                Event::Queued { job, .. } => {
                    if let Some(submitted) = submitted.get(&job) {
                        least = least.max(i128::from(*submitted) - at);
                        jobs += 1;
                    }
                }
                Event::Ended { job, .. } => {
                    if let Some(completed) = completed.get(&job) {
                        most = most.min(i128::from(*completed) - at);
                    }
                }
                _ => {}
            }
        }
        if least == i128::MIN || most == i128::MAX {
            return Err(Error::NoJob);
        }
        if least > most {
            return Err(Error::Drift);
        }
        let nanoseconds = i64::try_from((least + most) / 2).map_err(|_| Error::Drift)?;
        let uncertainty = u64::try_from((most - least + 1) / 2).map_err(|_| Error::Drift)?;
        Ok(Self {
            nanoseconds,
            uncertainty,
            jobs,
        })
    }

    /// The guest's time of a moment on the device.
    #[must_use]
    pub fn guest_time(&self, at: u64) -> u64 {
        at.saturating_add_signed(self.nanoseconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Record;
    use crate::guest;

    /// Jobs as a guest sees them: when each is submitted and complete.
    fn guest(jobs: &[(u64, u64, u64)]) -> Guest {
        let event = |at: u64, what| guest::Event {
            at: at / RESOLUTION * RESOLUTION,
            task: "t".into(),
            tid: 1,
            device: 0,
            space: Some(0),
            what,
        };
        let events = jobs.iter().flat_map(|&(job, submitted, completed)| {
            [
                event(submitted, What::Submit { job, operation: 1 }),
                event(completed, What::Complete { job, status: 0 }),
            ]
        });
        Guest {
            events: events.collect(),
            lost: 0,
        }
    }

    /// The same as a device sees them.
    fn device(jobs: &[(u64, u64, u64)]) -> Device {
        let record = |at, event| Record {
            at,
            lasted: 0,
            thread: "t".into(),
            space: Some(0),
            event,
        };
        let records = jobs.iter().flat_map(|&(job, queued, ended)| {
            [
                record(
                    queued,
                    Event::Queued {
                        job,
                        operation: "x".into(),
                    },
                ),
                record(
                    ended,
                    Event::Ended {
                        job,
                        how: "Ok".into(),
                    },
                ),
            ]
        });
        Device {
            records: records.collect(),
            lost: 0,
        }
    }

    #[test]
    fn the_difference_lies_within_what_it_says() {
        let mut random = fastrand::Rng::with_seed(3);
        for _ in 0..1000 {
            let difference = random.i64(-1_000_000_000_000..1_000_000_000_000);
            let start = 2_000_000_000_000_u64;
            let (mut ours, mut theirs) = (Vec::new(), Vec::new());
            for job in 0..random.u64(1..50) {
                let submitted = start + random.u64(..1_000_000_000);
                let queued = submitted + random.u64(..200_000);
                let ended = queued + random.u64(..1_000_000);
                let completed = ended + random.u64(..200_000);
                ours.push((job, submitted, completed));
                let theirs_of = |at: u64| at.saturating_add_signed(-difference);
                theirs.push((job, theirs_of(queued), theirs_of(ended)));
            }
            let found = Difference::find(&guest(&ours), 0, &device(&theirs)).unwrap();
            assert_eq!(found.jobs, ours.len());
            let wrong = found.nanoseconds.abs_diff(difference);
            assert!(wrong <= found.uncertainty, "{wrong} {found:?}");
            assert!(found.uncertainty <= 702_000, "{found:?}");
        }
    }

    #[test]
    fn without_a_job_in_common_there_is_none() {
        let (ours, theirs) = (guest(&[(1, 5000, 9000)]), device(&[(2, 6, 7)]));
        assert_eq!(Difference::find(&ours, 0, &theirs), Err(Error::NoJob));
        // Another device has jobs of the same names.
        let theirs = device(&[(1, 6, 7)]);
        assert_eq!(Difference::find(&ours, 1, &theirs), Err(Error::NoJob));
    }

    #[test]
    fn clocks_that_disagree_are_not_brought_together() {
        let ours = guest(&[(1, 10_000, 20_000), (2, 90_000, 95_000)]);
        let theirs = device(&[(1, 12_000, 18_000), (2, 50_000, 51_000)]);
        assert_eq!(Difference::find(&ours, 0, &theirs), Err(Error::Drift));
    }
}
