//! What a run has done, for people and for programs.
//!
//! It does not know how anything is done.

use std::fmt;
use std::time::Duration;

use hmm::SpaceCounters;
use hmm_cli::figure;
use serde::Serialize;

/// The result of a run.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Tally {
    pub(super) seed: u64,
    /// The exit status of the command.
    pub(super) status: u8,
    pub(super) seconds: f64,
    /// Processes that were bound; one that executes another program counts again.
    pub(super) processes: u64,
    /// Processes that could not be bound.
    pub(super) unbound: u64,
    /// Pages that moved to the device.
    pub(super) pages_to_device: u64,
    /// Pages that moved back, by request and because the CPU used them.
    pub(super) pages_to_system: u64,
    pub(super) jobs: u64,
    pub(super) faults: u64,
    /// Additions of zero in place.
    pub(super) writes: u64,
    /// Ranges that were made huge pages, and ranges that were paged out.
    pub(super) collapsed: u64,
    pub(super) paged_out: u64,
    /// Pages that device and CPU have compared, and readings of those in device memory.
    pub(super) comparisons: u64,
    pub(super) compared_on_device: u64,
    /// Pages that changed too often to be compared.
    pub(super) restless: u64,
    /// Pages in which the device reads something else than the CPU.
    pub(super) differences: u64,
}

impl Tally {
    /// Adds what has happened to a process that is not bound any more.
    pub(super) fn add(&mut self, counters: &SpaceCounters) {
        self.pages_to_device += counters.pages_to_device;
        self.pages_to_system += counters.pages_to_system + counters.cpu_fault_pages;
        self.faults += counters.faults;
    }

    /// Notes when the command has ended, and how.
    pub(super) fn end(&mut self, time: Duration, status: u8) {
        self.seconds = time.as_secs_f64();
        self.status = status;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = figure::count;
        write!(
            f,
            "hmm chaos: seed {}, {}: {} pages to the device and {} back, {} jobs, {} faults, \
             {} comparisons, {} {}: ",
            self.seed,
            figure::time(Duration::from_secs_f64(self.seconds)),
            count(self.pages_to_device),
            count(self.pages_to_system),
            count(self.jobs),
            count(self.faults),
            count(self.comparisons),
            count(self.processes),
            if self.processes == 1 {
                "process"
            } else {
                "processes"
            },
        )?;
        match self.differences {
            0 => f.write_str("no difference")?,
            1 => f.write_str("1 DIFFERENCE")?,
            many => write!(f, "{} DIFFERENCES", count(many))?,
        }
        if self.unbound > 0 {
            write!(f, "; {} could not be bound", count(self.unbound))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_cannot_be_overlooked() {
        let mut tally = Tally {
            seed: 7,
            processes: 1,
            comparisons: 1234,
            ..Tally::default()
        };
        tally.end(Duration::from_millis(1500), 0);
        let text = tally.to_string();
        assert!(
            text.starts_with("hmm chaos: seed 7, 1.5 s: 0 pages"),
            "{text}"
        );
        assert!(
            text.ends_with("1,234 comparisons, 1 process: no difference"),
            "{text}"
        );
        tally.differences = 2;
        tally.unbound = 3;
        let text = tally.to_string();
        assert!(
            text.ends_with("2 DIFFERENCES; 3 could not be bound"),
            "{text}"
        );
    }
}
