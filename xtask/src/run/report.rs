//! The results of the parts of a test run, and its final summary.
//!
//! It adds up the results that others have read, and knows nothing of the tests.

use std::fmt;
use std::time::Duration;

use crate::setup::progress::elapsed;

/// Counted results.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// Tests that did not run. They do not count as passed.
    pub(crate) skipped: u64,
}

/// One part of a run.
#[derive(Debug)]
struct Part {
    name: String,
    counts: Counts,
    took: Duration,
}

/// A test that failed, and the beginning of its output.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) test: String,
    pub(crate) lines: Vec<String>,
}

/// All parts of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    parts: Vec<Part>,
    /// The failures, each with the part that it belongs to.
    failures: Vec<(String, Failure)>,
}

impl Failure {
    /// A failed test without output so far.
    pub(crate) fn new(test: impl Into<String>) -> Self {
        Self {
            test: test.into(),
            lines: Vec::new(),
        }
    }
}

impl Counts {
    /// A check that counts as a single test.
    pub(crate) fn one(passed: bool) -> Self {
        Self {
            passed: u64::from(passed),
            failed: u64::from(!passed),
            skipped: 0,
        }
    }

    /// Adds the counts of a `test result:` line; other lines count nothing.
    pub(crate) fn add_line(&mut self, line: &str) {
        let Some(result) = line.trim_start().strip_prefix("test result:") else {
            return;
        };
        let count = |word: &str| {
            result
                .split([';', '.'])
                .find_map(|field| field.trim().strip_suffix(word)?.trim().parse().ok())
                .unwrap_or(0)
        };
        self.passed += count("passed");
        self.failed += count("failed");
        self.skipped += count("ignored");
    }
}

impl Report {
    /// Adds a part.
    pub(crate) fn add(&mut self, name: impl Into<String>, counts: Counts, took: Duration) {
        self.parts.push(Part {
            name: name.into(),
            counts,
            took,
        });
    }

    /// Adds the failures of a part, to repeat them at the end: the output of a whole run is long.
    pub(crate) fn add_failures(&mut self, part: &str, failures: impl IntoIterator<Item = Failure>) {
        let failures = failures
            .into_iter()
            .map(|failure| (part.to_owned(), failure));
        self.failures.extend(failures);
    }

    /// Whether every test ran and passed.
    pub(crate) fn is_good(&self) -> bool {
        let total = self.total();
        total.passed > 0 && total.failed == 0 && total.skipped == 0
    }

    fn total(&self) -> Counts {
        let mut total = Counts::default();
        for Part { counts, .. } in &self.parts {
            total.passed += counts.passed;
            total.failed += counts.failed;
            total.skipped += counts.skipped;
        }
        total
    }
}

impl fmt::Display for Report {
    /// The failures; a line for each part; and a line with their sum, in which skipped counts as
    /// failed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (part, Failure { test, lines }) in &self.failures {
            writeln!(f, "failed: {part}: {test}")?;
            for line in lines {
                writeln!(f, "    {line}")?;
            }
            writeln!(f)?;
        }
        let width = self
            .parts
            .iter()
            .map(|part| part.name.len())
            .max()
            .unwrap_or(0);
        for Part { name, counts, took } in &self.parts {
            let Counts {
                passed,
                failed,
                skipped,
            } = counts;
            writeln!(
                f,
                "{name:width$}  {passed:5} passed  {failed:3} failed  {skipped:3} skipped  {}",
                elapsed(*took)
            )?;
        }
        let total = self.total();
        write!(
            f,
            "{} passed, {} failed",
            total.passed,
            total.failed + total.skipped
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(text: &str) -> Counts {
        let mut counts = Counts::default();
        text.lines().for_each(|line| counts.add_line(line));
        counts
    }

    #[test]
    fn the_harness_summaries_are_summed() {
        let text = "running 3 tests\ntest a ... ok\n\
            test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.10s\n\
            test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.50s\n";
        assert_eq!(
            counts(text),
            Counts {
                passed: 14,
                failed: 4,
                skipped: 1
            }
        );
    }

    #[test]
    fn other_text_counts_nothing() {
        assert_eq!(
            counts("3 passed; 4 failed\nthe test result: 5 passed;"),
            Counts::default()
        );
    }

    #[test]
    fn a_skipped_test_spoils_a_run_and_counts_as_failed() {
        let mut report = Report::default();
        report.add(
            "host",
            Counts {
                passed: 5,
                failed: 0,
                skipped: 0,
            },
            Duration::ZERO,
        );
        assert!(report.is_good());
        report.add(
            "vm",
            Counts {
                passed: 1,
                failed: 0,
                skipped: 2,
            },
            Duration::ZERO,
        );
        assert!(!report.is_good());
        assert!(report.to_string().ends_with("\n6 passed, 2 failed"));
    }

    #[test]
    fn what_failed_is_said_again_at_the_end() {
        let mut report = Report::default();
        report.add("vm", Counts::one(false), Duration::ZERO);
        let mut failure = Failure::new("contract");
        failure.lines.push("a row is broken".to_owned());
        report.add_failures("vm", [failure]);
        let text = report.to_string();
        assert!(
            text.starts_with("failed: vm: contract\n    a row is broken\n\nvm"),
            "{text}"
        );
    }

    #[test]
    fn a_run_in_which_nothing_ran_is_not_good() {
        assert!(!Report::default().is_good());
    }
}
