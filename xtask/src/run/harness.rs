//! Reads the output of Rust's test harness: its counts, the result of each test, and the output of
//! those that failed.
//!
//! It knows the harness's output and nothing of the tests.

use crate::run::report::{Case, Counts, Failure, Outcome};

/// How the harness begins the line before a failed test's output.
const OPENS: &str = "---- ";

/// How it ends that line.
const OPENED: &str = " stdout ----";

/// The line before the output of the failed tests, and also before the list of their names.
const FAILURES: &str = "failures:";

/// The line of a panic before its backtrace, which the summary leaves out.
const BACKTRACE: &str = "stack backtrace:";

/// The most lines of one failed test that the summary repeats. A test that fails says why in its
/// first lines; the full output is further up.
const MOST_LINES: usize = 40;

/// A harness's output, read line by line.
#[derive(Debug, Default)]
pub(crate) struct Harness {
    pub(crate) counts: Counts,
    pub(crate) failures: Vec<Failure>,
    cases: Vec<Case>,
    place: Place,
}

/// The reader's position in the output.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Place {
    /// Outside the output of failed tests.
    #[default]
    Elsewhere,
    /// In the output of the last failed test.
    InFailure,
    /// In the part of it that is left out.
    InBacktrace,
}

impl Harness {
    /// Reads a line.
    pub(crate) fn line(&mut self, line: &str) {
        self.counts.add_line(line);
        self.cases.extend(result(line));
        if let Some(name) = opened(line) {
            self.failures.push(Failure::new(name));
            self.place = Place::InFailure;
        } else if line == FAILURES || line.starts_with("test result:") {
            self.place = Place::Elsewhere;
        } else if self.place == Place::InFailure {
            self.in_failure(line);
        }
    }

    /// Each test and its result, with what it has said if it failed.
    pub(crate) fn cases(&self) -> Vec<Case> {
        let mut cases = self.cases.clone();
        for case in &mut cases {
            let failure = self
                .failures
                .iter()
                .find(|failure| failure.test == case.name);
            if let (Outcome::Failed(said), Some(failure)) = (&mut case.outcome, failure) {
                *said = failure.lines.join("\n");
            }
        }
        cases
    }

    fn in_failure(&mut self, line: &str) {
        if line == BACKTRACE {
            self.place = Place::InBacktrace;
            return;
        }
        let Some(failure) = self.failures.last_mut() else {
            return;
        };
        if failure.lines.len() < MOST_LINES && !line.trim().is_empty() {
            failure.lines.push(line.to_owned());
        }
    }
}

/// The name of the test whose output this line opens.
fn opened(line: &str) -> Option<&str> {
    line.strip_prefix(OPENS)?.strip_suffix(OPENED)
}

/// The test whose result this line says.
fn result(line: &str) -> Option<Case> {
    let (name, result) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let outcome = match result {
        "ok" => Outcome::Passed,
        "FAILED" => Outcome::Failed(String::new()),
        ignored if ignored.starts_with("ignored") => Outcome::NotRun(ignored.to_owned()),
        _ => return None,
    };
    let name = name.strip_suffix(" - should panic").unwrap_or(name);
    Some(Case {
        name: name.to_owned(),
        outcome,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Harness {
        let mut harness = Harness::default();
        text.lines().for_each(|line| harness.line(line));
        harness
    }

    const OUTPUT: &str = "test a ... ok\ntest b ... FAILED\n\nfailures:\n\n\
        ---- b stdout ----\n\nthread 'b' (7) panicked at b.rs:3:5:\nno row is broken\n\
        stack backtrace:\n   0: one\n   1: two\n\n\
        ---- c stdout ----\nit is late\n\n\n\
        failures:\n    b\n    c\n\n\
        test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";

    #[test]
    fn what_failed_tests_have_said_is_kept_without_its_backtrace() {
        let harness = read(OUTPUT);
        let said: Vec<_> = harness
            .failures
            .iter()
            .map(|failure| (failure.test.as_str(), failure.lines.join("\n")))
            .collect();
        assert_eq!(
            said,
            [
                (
                    "b",
                    "thread 'b' (7) panicked at b.rs:3:5:\nno row is broken".to_owned()
                ),
                ("c", "it is late".to_owned()),
            ]
        );
        assert_eq!((harness.counts.passed, harness.counts.failed), (1, 2));
    }

    #[test]
    fn each_test_has_its_result_and_one_that_failed_what_it_said() {
        let text = format!("{OUTPUT}test d - should panic ... ok\ntest e ... ignored, slow\n");
        let cases: Vec<_> = read(&text)
            .cases()
            .into_iter()
            .map(|case| (case.name, case.outcome))
            .collect();
        let said = "thread 'b' (7) panicked at b.rs:3:5:\nno row is broken".to_owned();
        assert_eq!(
            cases,
            [
                ("a".to_owned(), Outcome::Passed),
                ("b".to_owned(), Outcome::Failed(said)),
                ("d".to_owned(), Outcome::Passed),
                ("e".to_owned(), Outcome::NotRun("ignored, slow".to_owned())),
            ]
        );
    }

    #[test]
    fn a_test_that_says_much_is_cut() {
        let long = format!("---- b stdout ----\n{}", "line\n".repeat(1000));
        assert_eq!(read(&long).failures[0].lines.len(), MOST_LINES);
    }

    #[test]
    fn tests_that_pass_leave_nothing() {
        let harness = read("test a ... ok\n\ntest result: ok. 1 passed; 0 failed; 0 ignored;\n");
        assert!(harness.failures.is_empty());
    }
}
