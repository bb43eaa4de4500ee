//! Compares two runs: what got worse or better, beyond noise.
//!
//! If both runs have the same reference, their ratios are compared, because these do not depend on
//! the machine's other work. Other values are compared only if the machine is the same. A change
//! counts if the middle halves of the repetitions do not overlap and the medians differ by more
//! than two runs of the same thing usually do.

use std::fmt;

use hmm_bench::{Better, Measurement, Spread};

use super::record::Record;

/// How far two runs of the same thing may differ, as a share.
const NOISE: f64 = 0.05;

/// The differences of two runs.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Comparison {
    /// The date of the earlier run.
    date: String,
    worse: Vec<Change>,
    better: Vec<Change>,
    /// How many measurements have not changed beyond noise.
    same: usize,
    /// Measurements of one run only, or not comparable.
    apart: Vec<String>,
}

/// The change of a measurement.
#[derive(Clone, Debug, PartialEq)]
struct Change {
    name: String,
    /// The unit, or the reference of the ratio.
    of: String,
    before: f64,
    after: f64,
}

impl Comparison {
    /// Compares a run with an earlier one.
    pub(super) fn of(old: &Record, new: &Record) -> Self {
        let same_machine = old.machine.processor == new.machine.processor
            && old.machine.processors == new.machine.processors
            && match (&old.versions.guest, &new.versions.guest) {
                (Some(old), Some(new)) => old.accelerator == new.accelerator,
                _ => true,
            };
        let mut comparison = Self {
            date: old.date.clone(),
            ..Self::default()
        };
        for measurement in &new.measurements {
            let same = |other: &&Measurement| {
                other.group == measurement.group && other.name == measurement.name
            };
            match old.measurements.iter().find(same) {
                Some(before) => comparison.add(before, measurement, same_machine),
                None => comparison
                    .apart
                    .push(format!("{} (new)", full_name(measurement))),
            }
        }
        for measurement in &old.measurements {
            let same = |other: &Measurement| {
                other.group == measurement.group && other.name == measurement.name
            };
            if !new.measurements.iter().any(same) {
                comparison
                    .apart
                    .push(format!("{} (gone)", full_name(measurement)));
            }
        }
        comparison
    }

    fn add(&mut self, old: &Measurement, new: &Measurement, same_machine: bool) {
        let name = full_name(new);
        let (of, before, after) = match (&old.reference, &new.reference) {
            (Some(old), Some(new)) if old.name == new.name => {
                (format!("x {}", new.name), old.ratio, new.ratio)
            }
            _ if same_machine && old.unit == new.unit => {
                (new.unit.name().to_owned(), old.value, new.value)
            }
            _ => {
                self.apart.push(format!("{name} (another machine)"));
                return;
            }
        };
        let change = Change {
            name,
            of,
            before: before.median,
            after: after.median,
        };
        if !is_change(&before, &after) {
            self.same += 1;
        } else if (after.median > before.median) == (new.better == Better::Higher) {
            self.better.push(change);
        } else {
            self.worse.push(change);
        }
    }
}

fn is_change(before: &Spread, after: &Spread) -> bool {
    let distance = (after.median - before.median).abs();
    before.is_apart_from(after) && distance > NOISE * before.median.abs()
}

fn full_name(measurement: &Measurement) -> String {
    format!("{}: {}", measurement.group, measurement.name.trim_start())
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "  {:<64} {:>10.3} -> {:>10.3} {}",
            self.name, self.before, self.after, self.of
        )?;
        if self.before != 0.0 {
            write!(f, " ({:+.0} %)", 100.0 * (self.after / self.before - 1.0))?;
        }
        Ok(())
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "compared with the run of {}:", self.date)?;
        for (title, changes) in [("worse", &self.worse), ("better", &self.better)] {
            writeln!(f, "{title}: {}", changes.len())?;
            for change in changes {
                writeln!(f, "{change}")?;
            }
        }
        write!(f, "no change beyond noise: {}", self.same)?;
        if !self.apart.is_empty() {
            write!(f, "\nnot compared: {}", self.apart.join("; "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::record;
    use hmm_bench::{Reference, Unit};

    fn spread(median: f64) -> Spread {
        Spread {
            median,
            low: median * 0.99,
            high: median * 1.01,
        }
    }

    fn time(value: f64, ratio: f64) -> Measurement {
        Measurement {
            group: "jobs".into(),
            name: "hop".into(),
            unit: Unit::Nanoseconds,
            better: Better::Lower,
            repetitions: 5,
            value: spread(value),
            reference: Some(Reference {
                name: "plain".into(),
                value: spread(value / ratio),
                ratio: spread(ratio),
            }),
        }
    }

    fn with(measurement: Measurement) -> Record {
        Record {
            measurements: vec![measurement],
            ..record()
        }
    }

    #[test]
    fn a_slower_machine_is_not_a_change_for_the_worse() {
        let comparison = Comparison::of(&with(time(10.0, 1.5)), &with(time(30.0, 1.5)));
        assert_eq!(comparison.same, 1);
        assert_eq!((comparison.worse, comparison.better), (vec![], vec![]));
    }

    #[test]
    fn a_longer_time_is_worse_and_a_higher_rate_is_better() {
        let comparison = Comparison::of(&with(time(10.0, 1.5)), &with(time(10.0, 2.0)));
        assert_eq!((comparison.worse.len(), comparison.better.len()), (1, 0));
        assert!(comparison.to_string().contains("(+33 %)"), "{comparison}");
        let rate = |ratio| Measurement {
            better: Better::Higher,
            ..time(1.0, ratio)
        };
        let comparison = Comparison::of(&with(rate(1.5)), &with(rate(2.0)));
        assert_eq!((comparison.worse.len(), comparison.better.len()), (0, 1));
    }

    #[test]
    fn what_lies_within_the_noise_is_no_change() {
        let comparison = Comparison::of(&with(time(10.0, 1.50)), &with(time(10.0, 1.56)));
        assert_eq!(comparison.same, 1, "4 % are less than runs differ by");
        let mut wide = time(10.0, 3.0);
        wide.reference.as_mut().unwrap().ratio.low = 1.0;
        let comparison = Comparison::of(&with(time(10.0, 1.5)), &with(wide));
        assert_eq!(comparison.same, 1, "the repetitions overlap");
    }

    #[test]
    fn without_a_reference_only_the_same_machine_compares() {
        let alone = |value| Measurement {
            reference: None,
            ..time(value, 1.0)
        };
        let comparison = Comparison::of(&with(alone(10.0)), &with(alone(20.0)));
        assert_eq!(comparison.worse.len(), 1);
        let mut other = with(alone(20.0));
        other.machine.processor = "another".into();
        let comparison = Comparison::of(&with(alone(10.0)), &other);
        assert_eq!((comparison.worse.len(), comparison.apart.len()), (0, 1));
    }

    #[test]
    fn what_only_one_run_has_is_named() {
        let comparison = Comparison::of(&record(), &with(time(1.0, 1.0)));
        assert_eq!(comparison.apart, ["jobs: hop (new)"]);
        let comparison = Comparison::of(&with(time(1.0, 1.0)), &record());
        assert_eq!(comparison.apart, ["jobs: hop (gone)"]);
    }
}
