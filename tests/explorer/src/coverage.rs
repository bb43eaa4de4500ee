//! Coverage: which point was tried with which subject, and whether anything was late there.
//!
//! Tables of several runs, shards and kernels can be added up. It does not know how anything is
//! tried.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::file;
use crate::rule::{Point, Side};

/// The version of the file.
const VERSION: u32 = 1;

/// What was tried, by kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coverage {
    version: u32,
    kernels: BTreeMap<String, Table>,
}

/// What was tried on one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Table {
    points: BTreeSet<Point>,
    subjects: BTreeSet<String>,
    /// Why subjects could not be tried.
    cannot_run: BTreeMap<String, String>,
    cells: BTreeMap<Point, BTreeMap<String, Cell>>,
    trials: u64,
    findings: u64,
}

/// One point with one subject.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Cell {
    /// Trials with a rule at this point.
    trials: u64,
    /// How often the rules took effect.
    late: u64,
}

impl Table {
    /// The subjects that can run.
    fn runnable(&self) -> impl Iterator<Item = &String> {
        let subjects = self.subjects.iter();
        subjects.filter(|subject| !self.cannot_run.contains_key(*subject))
    }
}

impl Default for Coverage {
    fn default() -> Self {
        Self {
            version: VERSION,
            kernels: BTreeMap::new(),
        }
    }
}

impl Coverage {
    /// Registers the points and subjects of a kernel.
    pub fn begin(&mut self, kernel: &str, points: &[Point], subjects: &[String]) {
        let table = self.table(kernel);
        table.points.extend(points.iter().cloned());
        table.subjects.extend(subjects.iter().cloned());
    }

    fn table(&mut self, kernel: &str) -> &mut Table {
        self.kernels.entry(kernel.to_owned()).or_default()
    }

    /// A subject was tried. Each rule's point comes with how often the rule took effect.
    pub fn add<'a>(
        &mut self,
        kernel: &str,
        subject: &str,
        late: impl IntoIterator<Item = (&'a Point, u64)>,
    ) {
        let table = self.table(kernel);
        table.trials += 1;
        for (point, late) in late {
            let subjects = table.cells.entry(point.clone()).or_default();
            let cell = subjects.entry(subject.to_owned()).or_default();
            cell.trials += 1;
            cell.late += late;
        }
    }

    /// A subject cannot run on this kernel.
    pub fn cannot_run(&mut self, kernel: &str, subject: &str, reason: &str) {
        let table = self.table(kernel);
        table
            .cannot_run
            .insert(subject.to_owned(), reason.to_owned());
    }

    /// A failure was found.
    pub fn found(&mut self, kernel: &str) {
        self.table(kernel).findings += 1;
    }

    /// Adds what another search has tried.
    pub fn merge(&mut self, other: Self) {
        for (kernel, other) in other.kernels {
            let table = self.kernels.entry(kernel).or_default();
            table.points.extend(other.points);
            table.subjects.extend(other.subjects);
            table.cannot_run.extend(other.cannot_run);
            // The counts come from files, which may hold any numbers.
            table.trials = table.trials.saturating_add(other.trials);
            table.findings = table.findings.saturating_add(other.findings);
            for (point, subjects) in other.cells {
                let mine = table.cells.entry(point).or_default();
                for (subject, cell) in subjects {
                    let mine = mine.entry(subject).or_default();
                    mine.trials = mine.trials.saturating_add(cell.trials);
                    mine.late = mine.late.saturating_add(cell.late);
                }
            }
        }
    }

    /// How many pairs of a point and a subject were tried on a kernel, in how many of them a rule
    /// took effect, and how many pairs exist.
    #[must_use]
    pub fn pairs(&self, kernel: &str) -> (usize, usize, usize) {
        let Some(table) = self.kernels.get(kernel) else {
            return (0, 0, 0);
        };
        let cells = || table.cells.values().flat_map(BTreeMap::values);
        let late = cells().filter(|cell| cell.late > 0).count();
        let all = table.points.len() * table.runnable().count();
        (cells().count(), late, all)
    }

    /// Points where no rule ever took effect, although rules were in force.
    #[must_use]
    pub fn never_late(&self, kernel: &str) -> Vec<&Point> {
        let table = self.kernels.get(kernel);
        let cells = table.iter().flat_map(|table| &table.cells);
        cells
            .filter(|(_, subjects)| subjects.values().all(|cell| cell.late == 0))
            .map(|(point, _)| point)
            .collect()
    }

    /// Reads a table.
    ///
    /// # Errors
    ///
    /// When it cannot be read or is no table.
    pub fn read(path: &Path) -> Result<Self> {
        file::read(path, VERSION, "table of what was covered")
    }

    /// Writes the table.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        file::write(path, self)
    }
}

impl fmt::Display for Coverage {
    /// As a table for a person.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (kernel, table) in &self.kernels {
            let (tried, late, all) = self.pairs(kernel);
            writeln!(
                f,
                "{kernel} kernel: {} trials, {} findings; {tried} of {all} pairs of a point and a \
                 subject tried, {late} with something late",
                table.trials, table.findings
            )?;
            writeln!(f)?;
            writeln!(f, "| point | subjects tried | late in | times late |")?;
            writeln!(f, "| --- | --- | --- | --- |")?;
            for point in &table.points {
                let cells = || table.cells.get(point).into_iter().flatten();
                let late = cells().filter(|(_, cell)| cell.late > 0).count();
                let times = cells().fold(0_u64, |sum, (_, cell)| sum.saturating_add(cell.late));
                writeln!(
                    f,
                    "| {point} | {} of {} | {late} | {times} |",
                    cells().count(),
                    table.runnable().count()
                )?;
            }
            for side in [Side::Device, Side::Driver] {
                let count = table.points.iter().filter(|point| point.side == side);
                writeln!(f, "\n{} points of the {side}", count.count())?;
            }
            if !table.cannot_run.is_empty() {
                writeln!(f, "\nnot tried, because they cannot run here:")?;
            }
            for (subject, reason) in &table.cannot_run {
                writeln!(f, "- {subject}: {reason}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn point(name: &str) -> Point {
        Point {
            side: Side::Driver,
            name: name.to_owned(),
            swaps: false,
        }
    }

    fn coverage(kernel: &str, tried: &[(&str, &str, u64)]) -> Coverage {
        let mut coverage = Coverage::default();
        let subjects = ["a", "b", "c"].map(str::to_owned);
        coverage.begin(kernel, &[point("lock"), point("copied")], &subjects);
        for (name, subject, late) in tried {
            coverage.add(kernel, subject, [(&point(name), *late)]);
        }
        coverage
    }

    #[test]
    fn tables_add_up_in_any_order() {
        let one = coverage("stock", &[("lock", "a", 3), ("copied", "b", 0)]);
        let other = coverage("stock", &[("lock", "a", 2), ("lock", "c", 1)]);
        let third = coverage("debug", &[("lock", "a", 1)]);
        let sum = |parts: [&Coverage; 3]| {
            let mut sum = Coverage::default();
            parts.into_iter().for_each(|part| sum.merge(part.clone()));
            sum
        };
        let all = sum([&one, &other, &third]);
        assert_eq!(all, sum([&third, &other, &one]));
        assert_eq!(all.pairs("stock"), (3, 2, 6));
        assert_eq!(all.pairs("debug"), (1, 1, 6));
        assert_eq!(all.never_late("stock"), [&point("copied")]);
        let text = all.to_string();
        assert!(text.contains("| driver:lock | 2 of 3 | 2 | 6 |"), "{text}");
    }

    #[test]
    fn what_cannot_run_is_not_to_be_tried() {
        let mut one = coverage("stock", &[("lock", "a", 3)]);
        one.cannot_run("stock", "c", "there is no swap");
        assert_eq!(one.pairs("stock"), (1, 1, 4));
        assert!(one.to_string().contains("- c: there is no swap"));
        assert_eq!(one.pairs("plan9"), (0, 0, 0));
    }

    #[test]
    fn a_table_that_no_search_has_written_is_added_up_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("coverage.json");
        // A finding that is kept may be of a subject that is not among those of the search.
        let mut one = coverage("stock", &[("lock", "a", u64::MAX)]);
        for subject in ["d", "e", "f", "g"] {
            one.cannot_run("stock", subject, "it is not there");
        }
        one.write(&path).unwrap();
        let mut sum = Coverage::read(&path).unwrap();
        sum.merge(one);
        let text = sum.to_string();
        let all = format!("| driver:lock | 1 of 3 | 1 | {} |", u64::MAX);
        assert!(text.contains(&all), "{text}");
    }

    #[test]
    fn a_table_is_read_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("coverage.json");
        let one = coverage("stock", &[("lock", "a", 3)]);
        one.write(&path).unwrap();
        assert_eq!(Coverage::read(&path).unwrap(), one);
        fs::write(&path, "{\"version\":2,\"kernels\":{}}").unwrap();
        assert!(Coverage::read(&path).is_err());
        fs::write(&path, "[]").unwrap();
        assert!(Coverage::read(&path).is_err());
    }
}
