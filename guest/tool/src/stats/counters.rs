//! The counters of driver and device: their groups and units, and how a reading and a change look.
//!
//! It does not know when they are read.

use std::fmt::Write;
use std::time::Duration;

use hmm::spec::wire::Layout;
use hmm::Counters;
use hmm_cli::figure;
use serde_json::{json, Value};
use zerocopy::{Immutable, IntoBytes};

/// The width of one of the two columns, driver and device.
const COLUMN: usize = 38;

/// A group: its title, and the counters of driver and device that belong to it.
type Group = (
    &'static str,
    &'static [&'static str],
    &'static [&'static str],
);

/// Every counter of both sides, once.
const GROUPS: &[Group] = &[
    (
        NOW,
        &["spaces", "used_frames", "total_frames"],
        &[
            "spaces",
            "jobs",
            "parked_jobs",
            "mapped_pages",
            "large_leaves",
            "table_bytes",
            "live_frames",
        ],
    ),
    (
        "jobs",
        &[],
        &[
            "jobs_ended",
            "jobs_ok",
            "engine_nanoseconds",
            "system_bytes",
            "device_bytes",
            "tlb_hits",
            "tlb_misses",
        ],
    ),
    (
        "faults",
        &[
            "faults",
            "fault_batches",
            "fault_pages",
            "fault_retries",
            "faults_terminated",
        ],
        &[
            "faults",
            "fault_buffers",
            "faults_retried",
            "faults_terminated",
            "answers_late",
        ],
    ),
    (
        "changes of mappings",
        &[
            "invalidations",
            "invalidations_sent",
            "invalidate_nanoseconds",
            "changes_hurried",
        ],
        &[
            "map_entries",
            "invalidations",
            "invalidated_pages",
            "invalidation_wait_nanoseconds",
        ],
    ),
    (
        "moves and copies",
        &[
            "pages_to_device",
            "huge_to_device",
            "pages_to_system",
            "cpu_fault_pages",
            "pages_evicted",
            "huge_to_system",
            "pages_refused",
            "pages_lost",
            "collect_nanoseconds",
            "allocate_nanoseconds",
            "copy_nanoseconds",
            "commit_nanoseconds",
            "finalise_nanoseconds",
        ],
        &[
            "bytes_to_device",
            "bytes_to_system",
            "bytes_on_device",
            "bytes_cleared",
            "copy_nanoseconds",
            "frames_discarded",
            "items_failed",
        ],
    ),
    (
        "queues",
        &["control_requests", "dma_requests", "interrupts", "kicks"],
        &[
            "control_requests",
            "dma_requests",
            "requests_refused",
            "chains_dropped",
        ],
    ),
    ("checks", &[], &["stale_accesses", "freed_frame_uses"]),
];

/// The group of the counters that are not sums, but tell what is there now.
const NOW: &str = "now";

/// Counters that reading the counters itself increments by one, or at most by one.
const OWN: [&str; 3] = ["control_requests", "interrupts", "kicks"];

/// One side of the device's link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Driver,
    Device,
}

impl Side {
    const BOTH: [Self; 2] = [Self::Driver, Self::Device];

    fn name(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Device => "device",
        }
    }

    fn of(self, (_, driver, device): &Group) -> &'static [&'static str] {
        match self {
            Self::Driver => driver,
            Self::Device => device,
        }
    }
}

/// A counter's name, as the interface has it, and its value.
type Counter = (&'static str, u64);

/// All counters at one time.
#[derive(Debug)]
pub(super) struct Reading {
    driver: Vec<Counter>,
    device: Vec<Counter>,
}

impl Reading {
    pub(super) fn of(counters: &Counters) -> Self {
        Self {
            driver: values(&counters.driver, u64::from_ne_bytes),
            device: values(&counters.device, u64::from_le_bytes),
        }
    }

    fn side(&self, side: Side) -> &[Counter] {
        match side {
            Side::Driver => &self.driver,
            Side::Device => &self.device,
        }
    }

    fn value(&self, side: Side, name: &str) -> u64 {
        let counters = self.side(side).iter();
        let mut found = counters.filter(|counter| counter.0 == name);
        found.next().map_or(0, |counter| counter.1)
    }

    /// The plain numbers.
    pub(super) fn json(&self) -> Value {
        let object = |side| {
            let counters = self.side(side).iter();
            let pairs = counters.map(|&(name, value)| (name.to_owned(), value.into()));
            Value::Object(pairs.collect())
        };
        json!({ "driver": object(Side::Driver), "device": object(Side::Device) })
    }

    /// The counters in groups, those of the driver beside those of the device. Counters that are
    /// zero are left out, unless all are wanted.
    pub(super) fn table(&self, all: bool) -> String {
        let mut text = format!("{:<COLUMN$}  device", "driver");
        let mut zeros = 0;
        for group in GROUPS {
            let [driver, device] = Side::BOTH.map(|side| {
                let names = side.of(group).iter();
                let counters = names.map(|name| (*name, self.value(side, name)));
                let (shown, left_out): (Vec<_>, Vec<_>) =
                    counters.partition(|counter| all || counter.1 != 0);
                zeros += left_out.len();
                shown.into_iter().map(cell).collect::<Vec<_>>()
            });
            let rows = driver.len().max(device.len());
            if rows > 0 {
                text.push_str(&format!("\n{}", group.0));
            }
            for row in 0..rows {
                let [left, right] = [&driver, &device].map(|cells| {
                    let cell = cells.get(row).map_or("", String::as_str);
                    format!("{cell:<COLUMN$}")
                });
                text.push_str(&format!("\n{}", format!("{left}  {right}").trim_end()));
            }
        }
        if zeros > 0 {
            // Writing to a string cannot fail.
            let _ = write!(text, "\n{zeros} counters are zero; --all shows them");
        }
        text
    }

    /// What has changed since an earlier reading, which took place `time` ago.
    pub(super) fn since(&self, before: &Self, time: Duration) -> Change {
        let mut changes = Vec::new();
        for group in GROUPS {
            for side in Side::BOTH {
                for name in side.of(group) {
                    let (now, before) = (self.value(side, name), before.value(side, name));
                    let is_sum = group.0 != NOW;
                    // A sum that is smaller was reset with the device, and has begun anew.
                    let more = if is_sum && now < before {
                        now
                    } else {
                        now.wrapping_sub(before)
                    };
                    // What the earlier reading has cost.
                    let more = if OWN.contains(name) {
                        more.saturating_sub(1)
                    } else {
                        more
                    };
                    if more != 0 {
                        changes.push(Entry {
                            side,
                            name,
                            now,
                            more: is_sum.then_some(more),
                        });
                    }
                }
            }
        }
        Change { time, changes }
    }
}

/// A counter that has changed.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    side: Side,
    name: &'static str,
    /// Its value now.
    now: u64,
    /// How much was added, if it is a sum.
    more: Option<u64>,
}

/// What has changed in a time.
#[derive(Debug)]
pub(super) struct Change {
    time: Duration,
    changes: Vec<Entry>,
}

impl Change {
    /// The plain numbers: what was added to a sum, and what is there now. `at` is the time since
    /// the first reading.
    pub(super) fn json(&self, at: Duration) -> Value {
        let object = |side| {
            let changes = self.changes.iter().filter(|change| change.side == side);
            let pairs = changes.map(|entry| {
                (
                    entry.name.to_owned(),
                    entry.more.unwrap_or(entry.now).into(),
                )
            });
            Value::Object(pairs.collect())
        };
        json!({
            "at_seconds": at.as_secs_f64(),
            "seconds": self.time.as_secs_f64(),
            "driver": object(Side::Driver),
            "device": object(Side::Device),
        })
    }

    /// A line for each change, with its rate. `at` is the time since the first reading.
    pub(super) fn table(&self, at: Duration) -> String {
        let time = format!(
            "at {:.1} s, in {:.1} s",
            at.as_secs_f64(),
            self.time.as_secs_f64()
        );
        let mut text = format!("{time:<40} {:>16} {:>16}", "change", "a second");
        if self.changes.is_empty() {
            text.push_str("\n  nothing changed");
        }
        for entry in &self.changes {
            let name = format!("  {} {}", entry.side.name(), label(entry.name));
            let unit = Unit::of(entry.name);
            let (change, rate) = match entry.more {
                Some(more) => (unit.show(more), unit.show(a_second(more, self.time))),
                None => (format!("now {}", unit.show(entry.now)), String::new()),
            };
            let line = format!("{name:<40} {change:>16} {rate:>16}");
            text.push_str(&format!("\n{}", line.trim_end()));
        }
        text
    }
}

/// How much of it is in a second, rounded.
fn a_second(more: u64, time: Duration) -> u64 {
    let nanoseconds = time.as_nanos().max(1);
    let rate = (u128::from(more) * 1_000_000_000 + nanoseconds / 2) / nanoseconds;
    u64::try_from(rate).unwrap_or(u64::MAX)
}

/// What a counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Count,
    Bytes,
    Nanoseconds,
}

impl Unit {
    /// The unit of a counter, by its name.
    fn of(name: &str) -> Self {
        let mut words = name.split('_');
        if words.clone().any(|word| word == "nanoseconds") {
            Self::Nanoseconds
        } else if words.any(|word| word == "bytes") {
            Self::Bytes
        } else {
            Self::Count
        }
    }

    fn show(self, value: u64) -> String {
        match self {
            Self::Count => figure::count(value),
            Self::Bytes => figure::bytes(value),
            Self::Nanoseconds => figure::time(Duration::from_nanos(value)),
        }
    }
}

/// A counter's name for a person. The value has its unit.
fn label(name: &str) -> String {
    name.replace("nanoseconds", "time").replace('_', " ")
}

/// A counter in one of the two columns.
fn cell((name, value): Counter) -> String {
    let (name, value) = (format!("  {}", label(name)), Unit::of(name).show(value));
    let room = COLUMN.saturating_sub(name.chars().count());
    format!("{name}{value:>room$}")
}

/// The fields of a structure that consists of 64-bit counters.
fn values<T: Layout + IntoBytes + Immutable>(
    counters: &T,
    decode: fn([u8; 8]) -> u64,
) -> Vec<Counter> {
    let bytes = counters.as_bytes();
    let fields = T::FIELDS.iter().filter_map(|field| {
        let (raw, _) = bytes.get(field.offset..)?.split_first_chunk()?;
        Some((field.name, decode(*raw)))
    });
    fields.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    const SECOND: Duration = Duration::from_secs(1);

    fn counters() -> Counters {
        Counters::new_zeroed()
    }

    /// Counters that all have this value.
    fn filled(value: u64) -> Counters {
        let mut counters = counters();
        for counter in counters.as_mut_bytes().chunks_mut(8) {
            counter.copy_from_slice(&value.to_ne_bytes());
        }
        counters
    }

    #[test]
    fn every_counter_of_both_sides_has_its_name_and_its_value() {
        let mut counters = counters();
        counters.driver.faults = 7;
        counters.device.freed_frame_uses = 9.into();
        let reading = Reading::of(&counters);
        assert!(reading.driver.contains(&("faults", 7)));
        assert_eq!(reading.device.last(), Some(&("freed_frame_uses", 9)));
        assert_eq!(reading.device.len() * 8, hmm::Statistics::SIZE);
        assert_eq!(reading.json()["driver"]["faults"], 7);
    }

    #[test]
    fn every_counter_is_in_one_group() {
        let reading = Reading::of(&counters());
        for side in Side::BOTH {
            let mut there: Vec<_> = reading.side(side).iter().map(|(name, _)| *name).collect();
            let mut grouped: Vec<_> = GROUPS
                .iter()
                .flat_map(|group| side.of(group))
                .copied()
                .collect();
            there.sort_unstable();
            grouped.sort_unstable();
            assert_eq!(grouped, there, "{side:?}");
        }
    }

    #[test]
    fn a_table_fits_into_80_columns_and_has_units() {
        // Some TiB, or a quarter of an hour, or a million million.
        let table = Reading::of(&filled(999_999_999_999)).table(false);
        for line in table.lines() {
            assert!(line.chars().count() < 80, "{line}");
        }
        let mut counters = counters();
        counters.driver.pages_to_device = 65_536;
        counters.driver.collect_nanoseconds = 12_300_000;
        counters.device.bytes_to_device = (256 << 20).into();
        let table = Reading::of(&counters).table(false);
        for part in ["65,536", "collect time", "12.3 ms", "256 MiB"] {
            assert!(table.contains(part), "{part}: {table}");
        }
        assert!(!table.contains("nanoseconds"), "{table}");
        assert!(!table.contains("kicks"), "{table}");
        assert!(table.contains("counters are zero"), "{table}");
        let all = Reading::of(&counters).table(true);
        assert!(all.contains("kicks") && !all.contains("are zero"), "{all}");
    }

    #[test]
    fn only_what_changed_is_shown_with_its_rate() {
        let (mut before, mut now) = (counters(), counters());
        before.driver.spaces = 3;
        now.driver.spaces = 1;
        before.driver.faults = 10;
        now.driver.faults = 14;
        let change = Reading::of(&now).since(&Reading::of(&before), SECOND * 2);
        let names: Vec<_> = change.changes.iter().map(|entry| entry.name).collect();
        assert_eq!(names, ["spaces", "faults"]);
        let table = change.table(SECOND * 10);
        assert!(table.starts_with("at 10.0 s, in 2.0 s"), "{table}");
        let faults: Vec<_> = table.lines().last().unwrap().split_whitespace().collect();
        assert_eq!(faults, ["driver", "faults", "4", "2"]);
        assert!(table.contains("now 1"), "{table}");
        for line in table.lines() {
            assert!(line.chars().count() < 80, "{line}");
        }
        let json = change.json(SECOND * 10);
        assert_eq!(json["driver"]["spaces"], 1, "what is there now");
        assert_eq!(json["driver"]["faults"], 4);
        assert_eq!(json["seconds"], 2.0);
    }

    #[test]
    fn an_idle_device_changes_nothing_though_the_counters_are_read() {
        let (before, mut now) = (counters(), counters());
        now.driver.control_requests = 1;
        now.driver.kicks = 1;
        now.driver.interrupts = 1;
        now.device.control_requests = 1.into();
        let change = Reading::of(&now).since(&Reading::of(&before), SECOND);
        assert_eq!(change.changes, []);
        assert!(change.table(SECOND).contains("nothing changed"));
        // One more is a program's.
        now.device.control_requests = 2.into();
        let change = Reading::of(&now).since(&Reading::of(&before), SECOND);
        assert_eq!(change.changes[0].more, Some(1));
    }

    #[test]
    fn a_device_that_was_restarted_has_begun_to_count_anew() {
        let (mut before, mut now) = (counters(), counters());
        before.device.jobs_ended = 100.into();
        now.device.jobs_ended = 3.into();
        let change = Reading::of(&now).since(&Reading::of(&before), SECOND);
        assert_eq!(change.changes[0].more, Some(3));
    }
}
