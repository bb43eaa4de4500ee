//! The outcome of each test on one driver, and which of these are failures of ours.
//!
//! It knows neither machines nor the format of the table.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hmm_vm::cases;
use hmm_vm::guest::{Result as GuestResult, Status};
use hmm_vm::kselftest::{Error, Reader, TestResult, Verdict};

/// The outcome of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The program has a verdict.
    Ended(TestResult),
    /// It was running when the run broke off; the lines that it had printed.
    Interrupted(Vec<String>),
    /// The test is on the list and did not run.
    Missing,
}

impl Outcome {
    /// The lines that it printed.
    pub(crate) fn notes(&self) -> &[String] {
        match self {
            Self::Ended(result) => &result.notes,
            Self::Interrupted(notes) => notes,
            Self::Missing => &[],
        }
    }

    pub(crate) fn passed(&self) -> bool {
        self.verdict() == Some(&Verdict::Passed)
    }

    pub(crate) fn verdict(&self) -> Option<&Verdict> {
        match self {
            Self::Ended(result) => Some(&result.verdict),
            Self::Interrupted(_) | Self::Missing => None,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ended(result) => match result.verdict {
                Verdict::Passed => "passed",
                Verdict::Failed => "failed",
                Verdict::Skipped(_) => "skipped",
            },
            Self::Interrupted(_) => "interrupted",
            Self::Missing => "did not run",
        })
    }
}

/// A test that may fail if its output has this note.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exception {
    /// The last part of its name.
    pub(crate) test: &'static str,
    /// A text that one of its notes must contain.
    pub(crate) note: &'static str,
}

impl Exception {
    fn holds(self, name: &str, outcome: &Outcome) -> bool {
        name.rsplit('.').next() == Some(self.test)
            && outcome.verdict() == Some(&Verdict::Failed)
            && outcome.notes().iter().any(|note| note.contains(self.note))
    }
}

/// All tests on one driver.
#[derive(Debug)]
pub(crate) struct Half {
    /// By name; every test of the list is included.
    pub(crate) outcomes: BTreeMap<String, Outcome>,
    /// Why the run broke off, if it did.
    pub(crate) broken: Option<String>,
    /// How long it took.
    pub(crate) took: Duration,
    /// Tests that ran and are not on the list.
    unlisted: Vec<String>,
}

impl Half {
    /// None of these tests has run yet.
    pub(crate) fn new(tests: &[String]) -> Self {
        Self {
            outcomes: tests
                .iter()
                .map(|name| (name.clone(), Outcome::Missing))
                .collect(),
            broken: None,
            took: Duration::ZERO,
            unlisted: Vec::new(),
        }
    }

    /// Adds the output of a run of the program. Returns whether it came to its end.
    pub(crate) fn add(
        &mut self,
        reader: Reader,
        unreadable: Option<Error>,
        status: GuestResult<Status>,
    ) -> bool {
        for result in reader.results() {
            self.set(&result.name, Outcome::Ended(result.clone()));
        }
        if let Some(test) = reader.unfinished() {
            self.set(&test.name, Outcome::Interrupted(test.notes.clone()));
        }
        self.broken = match (status, unreadable) {
            (Err(error), _) => Some(error.to_string()),
            (Ok(_), Some(error)) => Some(error.to_string()),
            (Ok(status), None) => match reader.finish() {
                Err(error) => Some(format!("{error}; the program ended with {status:?}")),
                Ok(results) => disagreement(&results, status),
            },
        };
        self.broken.is_none()
    }

    fn set(&mut self, name: &str, outcome: Outcome) {
        match self.outcomes.get_mut(name) {
            Some(place) => *place = outcome,
            None => self.unlisted.push(name.to_owned()),
        }
    }

    /// All problems, one sentence each.
    pub(crate) fn problems(&self, exceptions: &[Exception]) -> Vec<String> {
        let mut problems: Vec<String> = self.broken.iter().cloned().collect();
        let unlisted = self.unlisted.iter();
        problems.extend(unlisted.map(|name| format!("{name} is not on the list of tests")));
        let missing = self.missing();
        if !missing.is_empty() {
            problems.push(format!("did not run: {}", missing.join(", ")));
        }
        for (name, outcome) in &self.outcomes {
            let excused = exceptions.iter().any(|one| one.holds(name, outcome));
            if outcome.passed() || excused || *outcome == Outcome::Missing {
                continue;
            }
            let reason = match outcome.verdict() {
                Some(Verdict::Skipped(reason)) => reason.clone(),
                _ => outcome.notes().join("\n    "),
            };
            problems.push(format!("{name} {outcome}\n    {reason}"));
        }
        problems
    }

    /// The result of each test, for a report of all tests.
    pub(crate) fn results(&self, exceptions: &[Exception]) -> Vec<(String, cases::Outcome)> {
        let result = |(name, outcome): (&String, &Outcome)| {
            let excuse = exceptions.iter().find(|one| one.holds(name, outcome));
            let result = match (outcome.passed(), excuse) {
                (true, _) => cases::Outcome::Passed,
                (false, Some(excuse)) => cases::Outcome::CannotRun(excuse.note.to_owned()),
                (false, None) => {
                    let lines = std::iter::once(outcome.to_string());
                    let lines = lines.chain(outcome.notes().iter().cloned());
                    cases::Outcome::Failed(lines.collect::<Vec<_>>().join("\n"))
                }
            };
            (name.clone(), result)
        };
        self.outcomes.iter().map(result).collect()
    }

    /// The tests of the list that did not run.
    pub(crate) fn missing(&self) -> Vec<&str> {
        let outcomes = self.outcomes.iter();
        outcomes
            .filter(|(_, outcome)| **outcome == Outcome::Missing)
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// How many tests have such an outcome.
    pub(crate) fn count(&self, is: impl Fn(&Outcome) -> bool) -> usize {
        self.outcomes.values().filter(|outcome| is(outcome)).count()
    }
}

/// The program must exit with 0 exactly when no test failed.
fn disagreement(results: &[TestResult], status: Status) -> Option<String> {
    let failed = results
        .iter()
        .any(|result| result.verdict == Verdict::Failed);
    let expected = Status::Exited(i32::from(failed));
    (status != expected).then(|| {
        format!("the program ended with {status:?}, which does not agree with what it printed")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 2] = ["shelf.oak.bears", "shelf.oak.falls"];

    fn half(text: &str, status: Status) -> Half {
        let mut half = Half::new(&NAMES.map(str::to_owned));
        let mut reader = Reader::default();
        let unreadable = reader.read(text.as_bytes()).err();
        half.add(reader, unreadable, Ok(status));
        half
    }

    /// The output of the program for tests with these results.
    fn printed(results: &[(&str, &str, &str)]) -> String {
        let mut text = format!(
            "TAP version 13\n1..{0}\n# Starting {0} tests\n",
            results.len()
        );
        for (index, (name, note, end)) in results.iter().enumerate() {
            let (word, result) = match *end {
                "failed" => ("FAIL", "not ok"),
                _ => ("  OK", "ok"),
            };
            let skip = if *end == "skipped" {
                " # SKIP no wood"
            } else {
                ""
            };
            let number = index + 1;
            text.push_str(&format!(
                "#  RUN           {name} ...\n{note}\n\
                 #          {word}  {name}\n{result} {number} {name}{skip}\n"
            ));
        }
        let count = |word| results.iter().filter(|(_, _, end)| *end == word).count();
        let [passed, failed, skipped] = ["passed", "failed", "skipped"].map(count);
        let all = if failed == 0 { "PASSED" } else { "FAILED" };
        text.push_str(&format!(
            "# {all}: {} / {} tests passed.\n\
             # Totals: pass:{passed} fail:{failed} xfail:0 xpass:0 skip:{skipped} error:0\n",
            passed + skipped,
            results.len()
        ));
        text
    }

    #[test]
    fn tests_that_pass_are_no_problem() {
        let text = printed(&[(NAMES[0], "", "passed"), (NAMES[1], "", "passed")]);
        let half = half(&text, Status::Exited(0));
        assert_eq!(half.problems(&[]), [""; 0]);
        assert_eq!(half.count(Outcome::passed), 2);
    }

    #[test]
    fn a_test_that_fails_is_skipped_or_does_not_run_is_a_problem() {
        for (end, status) in [("failed", 1), ("skipped", 0)] {
            let text = printed(&[(NAMES[0], "because", end), (NAMES[1], "", "passed")]);
            let problems = half(&text, Status::Exited(status)).problems(&[]);
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].contains(end), "{problems:?}");
        }
        let text = printed(&[(NAMES[0], "", "passed")]);
        let problems = half(&text, Status::Exited(0)).problems(&[]);
        assert!(problems[0].contains("did not run"), "{problems:?}");
    }

    #[test]
    fn a_test_that_is_not_listed_is_a_problem() {
        let text = printed(&[
            (NAMES[0], "", "passed"),
            (NAMES[1], "", "passed"),
            ("shelf.oak.burns", "", "passed"),
        ]);
        let problems = half(&text, Status::Exited(0)).problems(&[]);
        assert!(problems[0].contains("shelf.oak.burns"), "{problems:?}");
    }

    #[test]
    fn a_run_that_breaks_off_is_a_problem_and_names_the_test_that_ran() {
        let whole = printed(&[(NAMES[0], "", "passed"), (NAMES[1], "crack", "passed")]);
        let (text, _) = whole.split_once("crack").unwrap();
        let half = half(text, Status::Signalled(9));
        assert!(half.broken.is_some());
        assert!(matches!(half.outcomes[NAMES[1]], Outcome::Interrupted(_)));
        assert!(half.outcomes[NAMES[0]].passed());
        assert_eq!(half.problems(&[]).len(), 2);
    }

    #[test]
    fn an_exit_that_does_not_fit_the_results_is_a_problem() {
        let text = printed(&[(NAMES[0], "", "passed"), (NAMES[1], "", "passed")]);
        for status in [Status::Exited(1), Status::Signalled(11)] {
            assert_eq!(half(&text, status).problems(&[]).len(), 1, "{status:?}");
        }
    }

    #[test]
    fn an_exception_excuses_one_test_that_fails_for_one_reason() {
        let exception = [Exception {
            test: "bears",
            note: "too heavy",
        }];
        let problems = |name: &str, note: &str, end: &str| {
            let other = NAMES.into_iter().find(|other| *other != name).unwrap();
            let text = printed(&[(name, note, end), (other, "", "passed")]);
            let status = Status::Exited(i32::from(end == "failed"));
            half(&text, status).problems(&exception).len()
        };
        assert_eq!(problems(NAMES[0], "# too heavy", "failed"), 0);
        assert_eq!(
            problems(NAMES[0], "# broken", "failed"),
            1,
            "another reason"
        );
        assert_eq!(
            problems(NAMES[1], "# too heavy", "failed"),
            1,
            "another test"
        );
        assert_eq!(
            problems(NAMES[0], "# too heavy", "skipped"),
            1,
            "not run at all"
        );
    }
}
