//! The results of the parts of a test run, and its final summary.
//!
//! It adds up the results that others have read, and knows nothing of the tests.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hmm_cli::remark;

use crate::setup::progress::elapsed;

/// Counted results.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// Tests that did not run. They do not count as passed.
    pub(crate) skipped: u64,
}

/// The result of a test, or of what a test tries one after the other.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Outcome {
    Passed,
    /// With what it said.
    Failed(String),
    /// With the reason.
    NotRun(String),
}

/// A test and its result.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Case {
    pub(crate) name: String,
    pub(crate) outcome: Outcome,
}

/// One part of a run.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) counts: Counts,
    pub(crate) took: Duration,
    /// Its tests, as far as they are known one by one.
    pub(crate) cases: Vec<Case>,
}

/// A test that failed, and the beginning of its output.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) test: String,
    pub(crate) lines: Vec<String>,
}

/// What did not run because the user did not want it.
#[derive(Debug)]
pub(crate) struct LeftOut {
    /// The part that it is, or belongs to.
    pub(crate) part: String,
    /// Its tests that are meant, or none if it is the whole part.
    pub(crate) tests: Vec<String>,
    pub(crate) reason: &'static str,
}

/// All parts of a run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) parts: Vec<Part>,
    /// The failures, each with the part that it belongs to.
    failures: Vec<(String, Failure)>,
    pub(crate) left_out: Vec<LeftOut>,
    /// What the user should know to read the results.
    notes: Vec<String>,
}

impl Failure {
    /// A failed test without output so far.
    pub(crate) fn new(test: impl Into<String>) -> Self {
        Self {
            test: test.into(),
            lines: Vec::new(),
        }
    }

    /// The beginning of why it failed, in one line.
    fn reason(&self) -> String {
        const MOST: usize = 400;
        let lines = self.lines.iter().map(|line| line.trim());
        let said: Vec<_> = lines.filter(|line| !is_place(line)).collect();
        said.join(" ").chars().take(MOST).collect()
    }
}

/// Whether a line says only where a test has panicked.
fn is_place(line: &str) -> bool {
    line.starts_with("thread '") && line.contains(" panicked at ")
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
            cases: Vec::new(),
        });
    }

    /// Adds the tests of the part that was added last.
    pub(crate) fn add_cases(&mut self, cases: impl IntoIterator<Item = Case>) {
        if let Some(part) = self.parts.last_mut() {
            part.cases.extend(cases);
        }
    }

    /// Notes what does not run: of a part, these tests, or all if none are named.
    pub(crate) fn leave_out(
        &mut self,
        part: impl Into<String>,
        tests: Vec<String>,
        reason: &'static str,
    ) {
        self.left_out.push(LeftOut {
            part: part.into(),
            tests,
            reason,
        });
    }

    /// Says something now, and once more at the end.
    pub(crate) fn note(&mut self, note: String) {
        remark!("note: {note}");
        self.notes.push(note);
    }

    /// What one part, if it failed, has said.
    pub(crate) fn said(&self, part: &str) -> String {
        let failures = self.failures.iter().filter(|(of, _)| of == part);
        let texts: Vec<_> = failures
            .map(|(_, Failure { test, lines })| format!("{test}\n{}", lines.join("\n")))
            .collect();
        texts.join("\n")
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

    /// The whole parts that were left out, by reason.
    fn left_out_parts(&self) -> BTreeMap<&'static str, Vec<&str>> {
        let mut parts: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for left in self.left_out.iter().filter(|left| left.tests.is_empty()) {
            parts
                .entry(left.reason)
                .or_default()
                .push(left.part.as_str());
        }
        parts
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

/// Names as far as a person reads them, and their number.
fn some(names: &[String]) -> String {
    const MOST: usize = 5;
    match names.len() {
        0..=MOST => names.join(", "),
        number => format!("{} and {} more", names[..MOST].join(", "), number - MOST),
    }
}

impl fmt::Display for Report {
    /// The failures; a line for each part; what was left out; a line for each failure, because the
    /// end is often all that is shown; and a line with the sum, in which skipped counts as failed.
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
        for Part {
            name, counts, took, ..
        } in &self.parts
        {
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
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        for part in &self.parts {
            for Case { name, outcome } in &part.cases {
                if let Outcome::NotRun(reason) = outcome {
                    writeln!(f, "could not run: {}: {name}: {reason}", part.name)?;
                }
            }
        }
        for (reason, parts) in self.left_out_parts() {
            writeln!(f, "left out, {reason}: {}", parts.join(", "))?;
        }
        for LeftOut {
            part,
            tests,
            reason,
        } in self.left_out.iter().filter(|left| !left.tests.is_empty())
        {
            writeln!(f, "left out of {part}, {reason}: {}", some(tests))?;
        }
        for (part, failure) in &self.failures {
            writeln!(f, "failed: {part}: {}: {}", failure.test, failure.reason())?;
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
        failure
            .lines
            .push("thread 'contract' (7) panicked at contract.rs:1:2:".to_owned());
        failure.lines.push("a row is broken".to_owned());
        report.add_failures("vm", [failure]);
        let text = report.to_string();
        assert!(
            text.starts_with("failed: vm: contract\n    thread 'contract'"),
            "{text}"
        );
        let end = "failed: vm: contract: a row is broken\n0 passed, 1 failed";
        assert!(text.ends_with(end), "{text}");
    }

    #[test]
    fn a_run_in_which_nothing_ran_is_not_good() {
        let mut report = Report::default();
        assert!(!report.is_good());
        report.leave_out("format", Vec::new(), "by name");
        assert!(!report.is_good());
    }

    #[test]
    fn what_was_left_out_is_said_and_spoils_nothing() {
        let mut report = Report::default();
        report.add("vm", Counts::one(true), Duration::ZERO);
        report.leave_out("format", Vec::new(), "by name");
        report.leave_out("lints", Vec::new(), "by name");
        let tests = (1..=7).map(|number| format!("t{number}")).collect();
        report.leave_out("vm", tests, "by name");
        assert!(report.is_good());
        let text = report.to_string();
        assert!(
            text.contains("\nleft out, by name: format, lints\n"),
            "{text}"
        );
        let tests = "\nleft out of vm, by name: t1, t2, t3, t4, t5 and 2 more\n";
        assert!(text.contains(tests), "{text}");
    }
}
