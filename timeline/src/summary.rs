//! What a trace adds up to.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use hmm_cli::figure;
use serde::Serialize;

use crate::device::{Device, Event as Did};
use crate::guest::{kind_of_move, Guest, What};

/// Sums of a guest's events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OfGuest {
    /// Events that were lost: the sums lack them.
    pub lost: u64,
    /// Jobs that were submitted.
    pub jobs: u64,
    /// Faults that have arrived.
    pub faults: u64,
    /// Faults that were answered with mapped pages.
    pub faults_resolved: u64,
    /// Pages that were mapped, those mapped ahead included.
    pub pages_mapped: u64,
    /// Attempts to map that were in vain.
    pub retries: u64,
    /// How long threads resolved faults and mapped ahead, in nanoseconds.
    pub resolve_nanoseconds: u64,
    /// Changes of the processes' address spaces.
    pub changes: u64,
    /// Changes that waited for the device.
    pub invalidations: u64,
    /// How long these waited, in nanoseconds.
    pub invalidate_nanoseconds: u64,
    /// Moves, by where to and why, such as `to device, REQUEST`.
    pub moves: BTreeMap<String, Moves>,
}

/// Sums of moves of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Moves {
    /// The parts that were moved one by one.
    pub parts: u64,
    /// The pages that have moved.
    pub pages: u64,
    /// How long all stages took, in nanoseconds.
    pub nanoseconds: u64,
}

/// Sums of a device's records.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct OfDevice {
    /// Records that were lost: the sums lack them.
    pub lost: u64,
    /// Jobs that have ended.
    pub jobs: u64,
    /// Faults that were raised.
    pub faults: u64,
    /// How long engines worked, in nanoseconds.
    pub engine_nanoseconds: u64,
    /// Requests by queue and operation.
    pub requests: BTreeMap<String, Times>,
    /// Where the device was late on purpose.
    pub late: BTreeMap<String, Times>,
}

/// Sums of what took time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Times {
    /// How often.
    pub count: u64,
    /// How long in all, in nanoseconds.
    pub nanoseconds: u64,
    /// How long at most, in nanoseconds.
    pub longest: u64,
}

impl Times {
    fn add(&mut self, nanoseconds: u64) {
        self.count += 1;
        self.nanoseconds = self.nanoseconds.saturating_add(nanoseconds);
        self.longest = self.longest.max(nanoseconds);
    }
}

impl OfGuest {
    /// Adds up a guest's events.
    #[must_use]
    pub fn of(guest: &Guest) -> Self {
        let mut sums = Self {
            lost: guest.lost,
            ..Self::default()
        };
        for event in &guest.events {
            match &event.what {
                What::Submit { .. } => sums.jobs += 1,
                What::Fault { .. } => sums.faults += 1,
                What::Resolve {
                    faults,
                    error,
                    pages,
                    retries,
                    nanoseconds,
                    ..
                } => {
                    sums.faults_resolved += if *error == 0 { *faults } else { 0 };
                    sums.pages_mapped += pages;
                    sums.retries += retries;
                    sums.resolve_nanoseconds += nanoseconds;
                }
                What::Change { .. } => sums.changes += 1,
                What::Invalidate { nanoseconds, .. } => {
                    sums.invalidations += 1;
                    sums.invalidate_nanoseconds += nanoseconds;
                }
                What::Migrate {
                    pages,
                    to_device,
                    cause,
                    stages,
                    ..
                } => {
                    let kind = kind_of_move(*to_device, cause);
                    let moves = sums.moves.entry(kind).or_default();
                    moves.parts += 1;
                    moves.pages += pages;
                    moves.nanoseconds += stages.iter().sum::<u64>();
                }
                What::Complete { .. } => {}
            }
        }
        sums
    }

    /// The sums in lines for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "jobs        {}", figure::count(self.jobs));
        let _ = writeln!(
            text,
            "faults      {}: {} pages mapped in {}, {} retries",
            figure::count(self.faults),
            figure::count(self.pages_mapped),
            time(self.resolve_nanoseconds),
            figure::count(self.retries)
        );
        let _ = writeln!(
            text,
            "changes     {}: {} waited for the device, {} in all",
            figure::count(self.changes),
            figure::count(self.invalidations),
            time(self.invalidate_nanoseconds)
        );
        for (kind, moves) in &self.moves {
            let _ = writeln!(
                text,
                "moves       {kind}: {} pages in {}",
                figure::count(moves.pages),
                time(moves.nanoseconds)
            );
        }
        lost(&mut text, self.lost, "events");
        text
    }
}

impl OfDevice {
    /// Adds up a device's records.
    #[must_use]
    pub fn of(device: &Device) -> Self {
        let mut sums = Self {
            lost: device.lost,
            ..Self::default()
        };
        for record in &device.records {
            match &record.event {
                Did::Ended { .. } => sums.jobs += 1,
                Did::Fault { .. } => sums.faults += 1,
                Did::Turn { .. } => sums.engine_nanoseconds += record.lasted,
                Did::Request { queue, operation } => {
                    let kind = match operation {
                        Some(operation) => format!("{queue} {operation}"),
                        None => queue.to_string(),
                    };
                    sums.requests.entry(kind).or_default().add(record.lasted);
                }
                Did::Late { point } => {
                    sums.late
                        .entry(point.to_string())
                        .or_default()
                        .add(record.lasted);
                }
                Did::Queued { .. } | Did::Answer { .. } | Did::Lost { .. } => {}
            }
        }
        sums
    }

    /// The sums in lines for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "device      {}, {}, {} on engines",
            number(self.jobs, "job"),
            number(self.faults, "fault"),
            time(self.engine_nanoseconds)
        );
        for (title, kinds) in [("requests", &self.requests), ("late", &self.late)] {
            for (kind, times) in kinds {
                let _ = writeln!(
                    text,
                    "{title:11} {kind}: {} in {}, {} at most",
                    figure::count(times.count),
                    time(times.nanoseconds),
                    time(times.longest)
                );
            }
        }
        lost(&mut text, self.lost, "records");
        text
    }
}

/// How many of a thing, with its name in the singular or the plural.
pub(crate) fn number(count: u64, name: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{} {name}{plural}", figure::count(count))
}

fn lost(text: &mut String, lost: u64, what: &str) {
    if lost > 0 {
        let _ = writeln!(
            text,
            "incomplete  {} {what} were lost, because they came faster than they could be written",
            figure::count(lost)
        );
    }
}

fn time(nanoseconds: u64) -> String {
    figure::time(Duration::from_nanos(nanoseconds))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::Record;

    #[test]
    fn a_guests_events_are_added_up_by_kind() {
        let text = "\
 a-1 [000] ..... 1.0: virtio_hmm_fault: device=0 space=0 job=3 address=0x1000 access=1 pages=1
 a-1 [000] ..... 1.1: virtio_hmm_resolve: device=0 space=0 address=0x1000 faults=1 error=-11 pages=0 retries=2 nanoseconds=5
 a-1 [000] ..... 1.2: virtio_hmm_resolve: device=0 space=0 address=0x1000 faults=1 error=0 pages=16 retries=0 nanoseconds=7
 a-1 [000] ..... 1.3: virtio_hmm_migrate: device=0 space=0 start=0x0 end=0x2000 pages=2 huge=0 to=system cause=PAGEFAULT_CPU collect=1 allocate=1 copy=1 commit=1 finalise=1 used=0
 a-1 [000] ..... 1.4: virtio_hmm_change: device=0 space=0 start=0x0 end=0x2000 event=UNMAP
";
        let sums = OfGuest::of(&Guest::read(text));
        assert_eq!((sums.faults, sums.faults_resolved, sums.retries), (1, 1, 2));
        assert_eq!((sums.pages_mapped, sums.resolve_nanoseconds), (16, 12));
        assert_eq!((sums.changes, sums.invalidations), (1, 0));
        let moves = &sums.moves["to system, PAGEFAULT_CPU"];
        assert_eq!((moves.parts, moves.pages, moves.nanoseconds), (1, 2, 5));
        let shown = sums.text();
        assert!(shown.lines().all(|line| line.len() <= 80), "{shown}");
        assert!(!shown.contains("incomplete"), "{shown}");
    }

    #[test]
    fn a_devices_records_are_added_up_and_losses_are_told() {
        let record = |lasted, event| Record {
            at: 1,
            lasted,
            thread: "t".into(),
            space: None,
            event,
        };
        let request = |operation: &'static str| Did::Request {
            queue: "control".into(),
            operation: Some(operation.into()),
        };
        let device = Device {
            records: vec![
                record(5, request("Map")),
                record(7, request("Map")),
                record(
                    9,
                    Did::Late {
                        point: "dma.taken".into(),
                    },
                ),
            ],
            lost: 3,
        };
        let sums = OfDevice::of(&device);
        let map = &sums.requests["control Map"];
        assert_eq!((map.count, map.nanoseconds, map.longest), (2, 12, 7));
        assert_eq!(sums.late["dma.taken"].longest, 9);
        assert!(
            sums.text().contains("3 records were lost"),
            "{}",
            sums.text()
        );
    }
}
