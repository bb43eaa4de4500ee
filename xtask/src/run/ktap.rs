//! Writes a report as KTAP, the format of the kernel's tests
//! (`Documentation/dev-tools/ktap.rst`).
//!
//! The parts are the tests; what is known of them one by one are their subtests.

use std::fmt::{self, Display, Write};

use crate::run::report::{Case, Outcome, Report};

/// The first line of a report, and of the subtests of a test.
const VERSION: &str = "KTAP version 1";

/// A report as KTAP.
#[derive(Debug)]
pub(crate) struct Ktap<'a>(pub(crate) &'a Report);

/// A test in the output: a part, or what was left out.
struct Test<'a> {
    name: &'a str,
    outcome: Outcome,
    inner: Vec<Case>,
}

impl Display for Ktap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tests = tests(self.0);
        writeln!(f, "{VERSION}\n1..{}", tests.len())?;
        for (number, test) in (1..).zip(&tests) {
            if !test.inner.is_empty() {
                writeln!(f, "  {VERSION}\n  1..{}", test.inner.len())?;
                for (number, case) in (1..).zip(&test.inner) {
                    line(f, "  ", number, &case.name, &case.outcome)?;
                }
            }
            line(f, "", number, test.name, &test.outcome)?;
        }
        Ok(())
    }
}

/// All parts, those that were left out too.
fn tests(report: &Report) -> Vec<Test<'_>> {
    let mut tests = Vec::new();
    for part in &report.parts {
        let left = report.left_out.iter().filter(|left| left.part == part.name);
        let left = left.flat_map(|left| {
            left.tests.iter().map(|name| Case {
                name: name.clone(),
                outcome: Outcome::NotRun(format!("left out, {}", left.reason)),
            })
        });
        tests.push(Test {
            name: &part.name,
            outcome: match part.counts.failed + part.counts.skipped {
                0 => Outcome::Passed,
                _ => Outcome::Failed(report.said(&part.name)),
            },
            inner: part.cases.iter().cloned().chain(left).collect(),
        });
    }
    for left in &report.left_out {
        if !report.parts.iter().any(|part| part.name == left.part) {
            tests.push(Test {
                name: &left.part,
                outcome: Outcome::NotRun(format!("left out, {}", left.reason)),
                inner: Vec::new(),
            });
        }
    }
    tests
}

/// The line of a result, after what the test has said.
fn line(
    f: &mut impl Write,
    indentation: &str,
    number: usize,
    name: &str,
    outcome: &Outcome,
) -> fmt::Result {
    if let Outcome::Failed(said) = outcome {
        for line in said.lines() {
            writeln!(f, "{indentation}# {line}")?;
        }
    }
    let (verdict, why) = match outcome {
        Outcome::Passed => ("ok", String::new()),
        Outcome::Failed(_) => ("not ok", String::new()),
        Outcome::NotRun(reason) => ("ok", format!(" # SKIP {}", plain(reason))),
    };
    writeln!(f, "{indentation}{verdict} {number} {}{why}", plain(name))
}

/// Text that does not begin a directive, on one line.
fn plain(text: &str) -> String {
    text.replace('#', "")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::report::{Counts, Failure};
    use std::time::Duration;

    #[test]
    fn parts_have_their_tests_below_them_and_nothing_is_missing() {
        let mut report = Report::default();
        report.add("format", Counts::one(true), Duration::ZERO);
        let counts = Counts {
            passed: 1,
            failed: 1,
            skipped: 0,
        };
        report.add("VM tests, stock kernel", counts, Duration::ZERO);
        let case = |name: &str, outcome| Case {
            name: name.to_owned(),
            outcome,
        };
        report.add_cases([
            case("smoke::works", Outcome::Passed),
            case(
                "row:munmap",
                Outcome::Failed("two bytes\nare wrong".to_owned()),
            ),
            case(
                "row:no-memory",
                Outcome::NotRun("no fault\ninjection #".to_owned()),
            ),
        ]);
        let mut failure = Failure::new("contract");
        failure.lines.push("a row is broken".to_owned());
        report.add_failures("VM tests, stock kernel", [failure]);
        report.leave_out(
            "VM tests, stock kernel",
            vec!["order::late".to_owned()],
            "by name",
        );
        report.leave_out("explorer, stock kernel", Vec::new(), "by name");
        assert_eq!(
            Ktap(&report).to_string(),
            "KTAP version 1\n\
             1..3\n\
             ok 1 format\n\
             \x20 KTAP version 1\n\
             \x20 1..4\n\
             \x20 ok 1 smoke::works\n\
             \x20 # two bytes\n\
             \x20 # are wrong\n\
             \x20 not ok 2 row:munmap\n\
             \x20 ok 3 row:no-memory # SKIP no fault injection\n\
             \x20 ok 4 order::late # SKIP left out, by name\n\
             # contract\n\
             # a row is broken\n\
             not ok 2 VM tests, stock kernel\n\
             ok 3 explorer, stock kernel # SKIP left out, by name\n"
        );
    }
}
