//! Verdicts as text: a table for people, CSV, and JSON by [`Verdict`]'s own form.

use std::fmt::Write;

use hmm_cli::figure;

use crate::judge::Verdict;

/// A table with a line for each verdict.
#[must_use]
pub fn people(verdicts: &[Verdict]) -> String {
    let timed = verdicts.iter().any(|verdict| verdict.time().is_some());
    let mut text = String::new();
    let _ = write!(
        text,
        "{:>9} {:<11} {:>9} {:>9} {:>9} {:>6} {:>5} {:>7}",
        "capacity", "policy", "to device", "home", "in place", "link", "bound", "served"
    );
    let _ = writeln!(text, "{}", if timed { "    time" } else { "" });
    for verdict in verdicts {
        let of_bound = verdict
            .of_bound()
            .map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
        let _ = write!(
            text,
            "{:>9} {:<11} {:>9} {:>9} {:>9} {:>6.2} {:>5} {:>6.1}%",
            figure::bytes(verdict.capacity),
            verdict.policy,
            figure::bytes(verdict.cost.to_device),
            figure::bytes(verdict.cost.to_system),
            figure::bytes(verdict.cost.in_place),
            verdict.of_footprint(),
            of_bound,
            verdict.served() * 100.0
        );
        let time = verdict.time().map(figure::short_time);
        let time = time.map(|time| format!(" {time:>7}")).unwrap_or_default();
        let _ = writeln!(text, "{time}");
    }
    text
}

/// The columns of [`csv`].
const COLUMNS: &str = "policy,capacity,footprint,to_device,to_system,in_place,on_device,moves,\
                       evictions,hits,misses,faults,link_bytes,bound,link_nanoseconds";

/// Comma-separated values with a line of titles. A value that was not asked for is empty.
#[must_use]
pub fn csv(verdicts: &[Verdict]) -> String {
    let mut text = format!("{COLUMNS}\n");
    let number = |value: Option<u64>| value.map_or_else(String::new, |value| value.to_string());
    for verdict in verdicts {
        let cost = &verdict.cost;
        let numbers = [
            verdict.capacity,
            verdict.footprint,
            cost.to_device,
            cost.to_system,
            cost.in_place,
            cost.on_device,
            cost.moves,
            cost.evictions,
            cost.hits,
            cost.misses,
            cost.faults,
            verdict.link_bytes,
        ];
        let numbers = numbers.map(|number| number.to_string()).join(",");
        let bound = number(verdict.bound);
        let time = number(verdict.link_nanoseconds);
        let _ = writeln!(text, "{},{numbers},{bound},{time}", verdict.policy);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cost::Cost;

    fn verdict() -> Verdict {
        let cost = Cost {
            to_device: 3 << 20,
            to_system: 1 << 20,
            in_place: 2 << 20,
            on_device: 6 << 20,
            ..Cost::default()
        };
        Verdict {
            policy: "heat",
            capacity: 2 << 20,
            footprint: 4 << 20,
            cost,
            link_bytes: cost.link_bytes(),
            bound: Some(5 << 20),
            link_nanoseconds: None,
        }
    }

    #[test]
    fn a_person_sees_ratios_and_a_bound_only_if_it_is_known() {
        let text = people(&[verdict()]);
        for part in ["heat", "1.50", "1.20", "75.0%", "3 MiB"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let unbounded = Verdict {
            bound: None,
            ..verdict()
        };
        assert!(!people(&[unbounded]).contains("1.20"));
    }

    #[test]
    fn a_table_fits_into_80_columns() {
        let most = Verdict {
            policy: "first-touch",
            capacity: 999 << 20,
            cost: Cost {
                to_device: 98_765 << 20,
                to_system: 98_765 << 20,
                in_place: 98_765 << 20,
                ..Cost::default()
            },
            footprint: 1024 << 20,
            link_bytes: 999 << 30,
            bound: Some(90 << 30),
            link_nanoseconds: Some(999_900_000),
        };
        for line in people(&[most]).lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn a_program_sees_the_same_numbers_in_both_forms() {
        let timed = Verdict {
            link_nanoseconds: Some(7),
            ..verdict()
        };
        let csv = csv(&[timed]);
        let mut lines = csv.lines().map(|line| line.split(',').collect::<Vec<_>>());
        let (titles, values) = (lines.next().unwrap(), lines.next().unwrap());
        assert_eq!(titles.len(), values.len());
        let json = serde_json::to_value(timed).unwrap();
        assert_eq!(json.as_object().unwrap().len(), titles.len());
        for (title, value) in titles.into_iter().zip(values) {
            let expected = &json[title];
            let expected = expected
                .as_str()
                .map_or(expected.to_string(), str::to_owned);
            assert_eq!(value, expected, "{title}");
        }
    }
}
