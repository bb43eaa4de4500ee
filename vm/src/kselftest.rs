//! Reads the output of the kernel's test programs, in the format of `kselftest_harness.h`.
//!
//! It is strict: a line that such a program never prints is an error, and so is a count that does
//! not add up. It does not know what is tested.

use std::mem;

/// What became of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It failed; the notes say why.
    Failed,
    /// It did not run, for this reason.
    Skipped(String),
}

/// A test that has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestResult {
    /// Its name: fixture, variant and test, joined by dots.
    pub name: String,
    /// What became of it.
    pub verdict: Verdict,
    /// What it printed.
    pub notes: Vec<String>,
}

/// A test that has begun and not ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Its name.
    pub name: String,
    /// What it has printed.
    pub notes: Vec<String>,
}

/// Why a text is not what a test program prints.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A line that is not allowed at this point.
    #[error("{line:?} is not expected where {expected} is")]
    Unexpected {
        /// The line.
        line: String,
        /// What is allowed there.
        expected: &'static str,
    },
    /// The output stopped before its end.
    #[error("it ended where {expected} is expected")]
    Ended {
        /// What is missing.
        expected: &'static str,
    },
    /// The program's counts differ from the results that it printed.
    #[error("{line:?} does not agree with the results before it")]
    Disagreement {
        /// The line.
        line: String,
    },
}

/// A result of reading.
pub type Result<T> = std::result::Result<T, Error>;

/// A run of tests, read while it is printed.
#[derive(Debug, Default)]
pub struct Reader {
    state: State,
    /// The part of a line whose end has not arrived.
    rest: Vec<u8>,
    planned: usize,
    results: Vec<TestResult>,
}

#[derive(Debug, Default)]
enum State {
    /// Nothing has arrived.
    #[default]
    Version,
    Plan,
    Start,
    /// Between two tests.
    Between,
    Running(Unfinished),
    /// The test has ended; whether it passed.
    Ended(Unfinished, bool),
    /// All tests have ended; the counts follow.
    Totals,
    Over,
}

impl State {
    const fn expected(&self) -> &'static str {
        match self {
            Self::Version => "the version of the format",
            Self::Plan => "the number of tests",
            Self::Start => "the announcement of the run",
            Self::Between => "the beginning of a test or the end of the run",
            Self::Running(_) => "the end of a test",
            Self::Ended(..) => "the result of the test that has ended",
            Self::Totals => "the counts of the run",
            Self::Over => "nothing more",
        }
    }
}

impl Reader {
    /// Reads more.
    ///
    /// # Errors
    ///
    /// When a line is not what a test program prints at that point. Nothing after it is read.
    pub fn read(&mut self, bytes: &[u8]) -> Result<()> {
        self.rest.extend_from_slice(bytes);
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            self.line(String::from_utf8_lossy(&line[..end]).trim_end_matches('\r'))?;
        }
        Ok(())
    }

    /// The tests that have ended so far, in their order.
    #[must_use]
    pub fn results(&self) -> &[TestResult] {
        &self.results
    }

    /// The test that has begun and not ended.
    #[must_use]
    pub fn unfinished(&self) -> Option<&Unfinished> {
        match &self.state {
            State::Running(test) | State::Ended(test, _) => Some(test),
            _ => None,
        }
    }

    /// All tests of a run that has ended.
    ///
    /// # Errors
    ///
    /// When the run has not ended.
    pub fn finish(self) -> Result<Vec<TestResult>> {
        match self.state {
            State::Over if self.rest.is_empty() => Ok(self.results),
            state => Err(Error::Ended {
                expected: state.expected(),
            }),
        }
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let state = mem::take(&mut self.state);
        let expected = state.expected();
        let unexpected = || Error::Unexpected {
            line: line.to_owned(),
            expected,
        };
        self.state = match state {
            State::Version if line == "TAP version 13" => State::Plan,
            // A program may print remarks before its tests.
            State::Version if line.starts_with("# ") => State::Version,
            State::Plan => {
                let planned = line.strip_prefix("1..").and_then(|n| n.parse().ok());
                self.planned = planned.ok_or_else(unexpected)?;
                State::Start
            }
            State::Start if line.starts_with("# Starting ") => State::Between,
            State::Between => {
                if let Some(name) = begins(line) {
                    State::Running(Unfinished {
                        name: name.to_owned(),
                        notes: Vec::new(),
                    })
                } else if line.starts_with("# PASSED: ") || line.starts_with("# FAILED: ") {
                    self.check_verdict(line)?;
                    State::Totals
                } else {
                    return Err(unexpected());
                }
            }
            State::Running(mut test) => match ends(line) {
                Some((passed, name)) if name == test.name => State::Ended(test, passed),
                // A test may print anything but a result.
                None if !is_result(line) => {
                    test.notes.push(line.to_owned());
                    State::Running(test)
                }
                _ => return Err(unexpected()),
            },
            State::Ended(test, passed) => {
                let number = self.results.len() + 1;
                let verdict = verdict(line, number, &test.name, passed).ok_or_else(unexpected)?;
                self.results.push(TestResult {
                    name: test.name,
                    verdict,
                    notes: test.notes,
                });
                State::Between
            }
            // If tests were skipped, the program prints this before the counts.
            State::Totals if line.contains(" skipped test(s) detected.") => State::Totals,
            State::Totals => {
                if line != self.totals() {
                    return Err(Error::Disagreement {
                        line: line.to_owned(),
                    });
                }
                State::Over
            }
            State::Version | State::Start | State::Over => return Err(unexpected()),
        };
        Ok(())
    }

    /// The program's own verdict must follow from its results.
    fn check_verdict(&self, line: &str) -> Result<()> {
        let [passed, failed, skipped] = self.counts();
        let all = if failed == 0 { "PASSED" } else { "FAILED" };
        // The program counts skipped tests among those that passed.
        let passed = passed + skipped;
        let expected = format!("# {all}: {passed} / {} tests passed.", self.planned);
        if line == expected {
            Ok(())
        } else {
            Err(Error::Disagreement {
                line: line.to_owned(),
            })
        }
    }

    fn totals(&self) -> String {
        let [passed, failed, skipped] = self.counts();
        format!("# Totals: pass:{passed} fail:{failed} xfail:0 xpass:0 skip:{skipped} error:0")
    }

    /// How many passed, failed and were skipped.
    fn counts(&self) -> [usize; 3] {
        let count = |wanted: fn(&Verdict) -> bool| {
            let verdicts = self.results.iter().map(|result| &result.verdict);
            verdicts.filter(|verdict| wanted(verdict)).count()
        };
        [
            count(|verdict| *verdict == Verdict::Passed),
            count(|verdict| *verdict == Verdict::Failed),
            count(|verdict| matches!(verdict, Verdict::Skipped(_))),
        ]
    }
}

/// The name in `#  RUN           name ...`.
fn begins(line: &str) -> Option<&str> {
    let rest = line.strip_prefix("#  RUN ")?;
    rest.trim_start().strip_suffix(" ...")
}

/// Whether a test passed, and its name, in `#            OK  name`.
fn ends(line: &str) -> Option<(bool, &str)> {
    let rest = line.strip_prefix("#          ")?.trim_start();
    let (word, name) = rest.split_once("  ")?;
    match word {
        "OK" => Some((true, name)),
        "FAIL" => Some((false, name)),
        _ => None,
    }
}

fn is_result(line: &str) -> bool {
    line.starts_with("ok ") || line.starts_with("not ok ") || begins(line).is_some()
}

/// The verdict in `ok number name` or `ok number name # SKIP reason`.
fn verdict(line: &str, number: usize, name: &str, passed: bool) -> Option<Verdict> {
    let word = if passed { "ok" } else { "not ok" };
    let rest = line.strip_prefix(&format!("{word} {number} {name}"))?;
    match (rest.strip_prefix(" # SKIP "), passed) {
        (Some(reason), true) => Some(Verdict::Skipped(reason.to_owned())),
        (None, true) if rest.is_empty() => Some(Verdict::Passed),
        // A failure may be followed by an explanation behind `#`.
        (None, false) if rest.is_empty() || rest.starts_with(" # ") => Some(Verdict::Failed),
        _ => None,
    }
}

/// The names of all tests of a program, read from the output of `-l`: a table of each fixture's
/// variants and tests, side by side.
///
/// # Errors
///
/// When a line does not fit such a table, or the table is empty.
pub fn listed(text: &str) -> Result<Vec<String>> {
    let unexpected = |line: &str| Error::Unexpected {
        line: line.to_owned(),
        expected: "a row of fixture, variant and test",
    };
    let mut lines = text.lines();
    let heading: Vec<&str> = lines
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    if heading != ["#", "FIXTURE", "VARIANT", "TEST"] {
        return Err(unexpected(&heading.join(" ")));
    }
    let mut fixtures: Vec<Fixture> = Vec::new();
    for line in lines.filter(|line| !line.starts_with("-----")) {
        let row = Row::of(line).ok_or_else(|| unexpected(line))?;
        if !row.fixture.is_empty() {
            fixtures.push(Fixture {
                name: row.fixture,
                variants: Vec::new(),
                tests: Vec::new(),
            });
        }
        let fixture = fixtures.last_mut().ok_or_else(|| unexpected(line))?;
        fixture
            .variants
            .extend(Some(row.variant).filter(|name| !name.is_empty()));
        fixture
            .tests
            .extend(Some(row.test).filter(|name| !name.is_empty()));
    }
    let names: Vec<String> = fixtures.iter().flat_map(Fixture::names).collect();
    if names.is_empty() {
        return Err(Error::Ended {
            expected: "a table with a test in it",
        });
    }
    Ok(names)
}

struct Fixture<'a> {
    name: &'a str,
    variants: Vec<&'a str>,
    tests: Vec<&'a str>,
}

impl Fixture<'_> {
    /// Every test in every variant, in the order in which they run.
    fn names(&self) -> Vec<String> {
        let prefixes = if self.variants.is_empty() {
            vec![format!("{}.", self.name)]
        } else {
            let variants = self.variants.iter();
            variants
                .map(|variant| format!("{}.{variant}.", self.name))
                .collect()
        };
        prefixes
            .iter()
            .flat_map(|prefix| self.tests.iter().map(move |test| format!("{prefix}{test}")))
            .collect()
    }
}

/// A row of the table, whose columns have fixed positions.
struct Row<'a> {
    fixture: &'a str,
    variant: &'a str,
    test: &'a str,
}

impl<'a> Row<'a> {
    fn of(line: &'a str) -> Option<Self> {
        const FIXTURE: usize = 20;
        const VARIANT: usize = 25;
        let (fixture, rest) = line.split_at_checked(FIXTURE)?;
        let (variant, test) = rest.strip_prefix(' ')?.split_at_checked(VARIANT)?;
        let row = Self {
            fixture: fixture.trim_end(),
            variant: variant.trim_end(),
            test: test.strip_prefix(' ')?,
        };
        // A name that is too long would shift the next column.
        let whole = |name: &str| !name.contains(char::is_whitespace);
        (whole(row.fixture) && whole(row.variant) && whole(row.test)).then_some(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUN: &str = "\
# [INFO] detected wood
TAP version 13
1..3
# Starting 3 tests from 2 test cases.
#  RUN           shelf.oak.bears_a_book ...
#            OK  shelf.oak.bears_a_book
ok 1 shelf.oak.bears_a_book
#  RUN           shelf.pine.bears_a_book ...
# shelf.c:7:bears_a_book:Expected books (0) == 1 (1)
# bears_a_book: Test terminated by assertion
#          FAIL  shelf.pine.bears_a_book
not ok 2 shelf.pine.bears_a_book
#  RUN           shelf.pine.bears_two ...
#      SKIP      no second book
#            OK  shelf.pine.bears_two
ok 3 shelf.pine.bears_two # SKIP no second book
# FAILED: 2 / 3 tests passed.
# 1 skipped test(s) detected. Consider enabling relevant config options to improve coverage.
# Totals: pass:1 fail:1 xfail:0 xpass:0 skip:1 error:0
";

    fn read(text: &str) -> Result<Vec<TestResult>> {
        let mut reader = Reader::default();
        reader.read(text.as_bytes())?;
        reader.finish()
    }

    #[test]
    fn a_run_is_read_with_its_verdicts_and_notes() {
        let results = read(RUN).unwrap();
        let verdicts: Vec<_> = results.iter().map(|result| &result.verdict).collect();
        assert_eq!(
            verdicts,
            [
                &Verdict::Passed,
                &Verdict::Failed,
                &Verdict::Skipped("no second book".into())
            ]
        );
        assert_eq!(results[1].name, "shelf.pine.bears_a_book");
        assert_eq!(results[1].notes.len(), 2, "{:?}", results[1].notes);
        assert!(results[0].notes.is_empty());
    }

    #[test]
    fn it_does_not_matter_how_the_text_is_cut() {
        let whole = read(RUN).unwrap();
        for length in [1, 7, 64] {
            let mut reader = Reader::default();
            for piece in RUN.as_bytes().chunks(length) {
                reader.read(piece).unwrap();
            }
            assert_eq!(reader.finish().unwrap(), whole);
        }
    }

    #[test]
    fn a_run_that_stops_anywhere_is_not_finished() {
        for end in RUN.match_indices('\n').map(|(end, _)| end + 1) {
            let part = &RUN[..end];
            assert_eq!(read(part).is_ok(), part == RUN, "{part}");
        }
    }

    #[test]
    fn of_a_run_that_stopped_it_is_known_what_ended_and_what_was_running() {
        let stopped = RUN.split("#          FAIL").next().unwrap();
        let mut reader = Reader::default();
        reader.read(stopped.as_bytes()).unwrap();
        assert_eq!(reader.results().len(), 1);
        let running = reader.unfinished().unwrap();
        assert_eq!(running.name, "shelf.pine.bears_a_book");
        assert_eq!(running.notes.len(), 2);
    }

    #[test]
    fn what_a_test_program_never_prints_is_an_error() {
        for (right, wrong) in [
            ("TAP version 13", "TAP version 14"),
            ("1..3", "1..many"),
            ("ok 1 shelf", "ok 2 shelf"),
            ("ok 1 shelf.oak", "ok 1 shelf.pine"),
            ("ok 1 shelf.oak", "not ok 1 shelf.oak"),
            ("not ok 2", "ok 2"),
            ("OK  shelf.oak", "OK  shelf.pine"),
            (" # SKIP no", " # XFAIL no"),
            ("# SKIP no second book", "# so so"),
            ("#            OK  shelf.oak.bears_a_book\n", ""),
            ("ok 1 shelf.oak.bears_a_book\n", ""),
            ("#  RUN           shelf.pine.bears_two ...\n", ""),
            ("# Starting", "# Stopping"),
        ] {
            let text = RUN.replacen(right, wrong, 1);
            assert_ne!(text, RUN, "{right:?} is in the text");
            assert!(
                matches!(read(&text), Err(Error::Unexpected { .. })),
                "{wrong:?} is no line of a run"
            );
        }
        assert!(read(&format!("{RUN}ok 4 shelf.ash.bears_a_book\n")).is_err());
    }

    #[test]
    fn counts_that_do_not_add_up_are_an_error() {
        for (right, wrong) in [
            ("FAILED: 2 / 3", "PASSED: 2 / 3"),
            ("FAILED: 2 / 3", "FAILED: 3 / 3"),
            ("1..3", "1..4"),
            ("pass:1 fail:1", "pass:2 fail:0"),
            ("skip:1", "skip:0"),
        ] {
            let text = RUN.replacen(right, wrong, 1);
            assert!(
                matches!(read(&text), Err(Error::Disagreement { .. })),
                "{wrong:?}"
            );
        }
    }

    /// Columns of 20 and 25 characters, as the harness prints them.
    const LIST: &str = "\
# FIXTURE            VARIANT                   TEST
global                                         
--------------------------------------------------------------------------------
shelf                oak                       bears_a_book
                     pine                      bears_two
                                               falls
--------------------------------------------------------------------------------
floor                                          creaks
";

    #[test]
    fn every_test_of_every_variant_is_listed() {
        assert_eq!(
            listed(LIST).unwrap(),
            [
                "shelf.oak.bears_a_book",
                "shelf.oak.bears_two",
                "shelf.oak.falls",
                "shelf.pine.bears_a_book",
                "shelf.pine.bears_two",
                "shelf.pine.falls",
                "floor.creaks",
            ]
        );
    }

    #[test]
    fn what_is_no_such_list_is_an_error() {
        let empty = LIST.lines().take(2).collect::<Vec<_>>().join("\n");
        let moved = LIST.replace("oak   ", "oak two names ");
        for text in ["", "usage: shelf", empty.as_str(), moved.as_str()] {
            assert!(listed(text).is_err(), "{text}");
        }
    }
}
