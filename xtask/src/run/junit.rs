//! Writes a report as JUnit's XML, which continuous integration shows.
//!
//! A part is a test suite.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use quick_junit::{NonSuccessKind, Report as Junit, TestCase, TestCaseStatus, TestSuite};

use crate::run::report::{Outcome, Part, Report};

/// Writes the file.
///
/// # Errors
///
/// When it cannot be written.
pub(crate) fn write(report: &Report, path: &Path) -> Result<()> {
    let file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
    of(report)
        .serialize(file)
        .with_context(|| format!("writing {}", path.display()))
}

fn of(report: &Report) -> Junit {
    let mut junit = Junit::new("virtio-hmm");
    for part in &report.parts {
        junit.add_test_suite(suite(report, part));
    }
    for left in &report.left_out {
        if !report.parts.iter().any(|part| part.name == left.part) {
            let mut suite = TestSuite::new(left.part.as_str());
            let reason = Outcome::NotRun(format!("left out, {}", left.reason));
            suite.add_test_case(case(&left.part, "all of it", &reason));
            junit.add_test_suite(suite);
        }
    }
    junit
}

fn suite(report: &Report, part: &Part) -> TestSuite {
    let mut suite = TestSuite::new(part.name.as_str());
    suite.set_time(part.took);
    for each in &part.cases {
        suite.add_test_case(case(&part.name, &each.name, &each.outcome));
    }
    let has_failed = part.counts.failed + part.counts.skipped > 0;
    let is_shown = |outcome: &Outcome| matches!(outcome, Outcome::Failed(_));
    if part.cases.is_empty() || has_failed && !part.cases.iter().any(|c| is_shown(&c.outcome)) {
        let outcome = match has_failed {
            true => Outcome::Failed(report.said(&part.name)),
            false => Outcome::Passed,
        };
        let mut whole = case(&part.name, "all of it", &outcome);
        whole.set_time(part.took);
        suite.add_test_case(whole);
    }
    for left in report.left_out.iter().filter(|left| left.part == part.name) {
        let reason = Outcome::NotRun(format!("left out, {}", left.reason));
        for name in &left.tests {
            suite.add_test_case(case(&part.name, name, &reason));
        }
    }
    suite
}

fn case(part: &str, name: &str, outcome: &Outcome) -> TestCase {
    let status = match outcome {
        Outcome::Passed => TestCaseStatus::success(),
        Outcome::Failed(said) => {
            let mut status = TestCaseStatus::non_success(NonSuccessKind::Failure);
            status.set_message(said.lines().next().unwrap_or_default());
            status.set_description(said.as_str());
            status
        }
        Outcome::NotRun(reason) => {
            let mut status = TestCaseStatus::skipped();
            status.set_message(reason.as_str());
            status
        }
    };
    let mut case = TestCase::new(name, status);
    case.set_classname(part);
    case
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::report::{Case, Counts, Failure};
    use std::time::Duration;

    #[test]
    fn every_test_is_there_with_its_result() {
        let mut report = Report::default();
        report.add("format", Counts::one(true), Duration::from_secs(2));
        report.add("VM tests, stock kernel", Counts::one(false), Duration::ZERO);
        report.add_cases([Case {
            name: "row:munmap".to_owned(),
            outcome: Outcome::Failed("two bytes < three\nare wrong".to_owned()),
        }]);
        report.leave_out(
            "VM tests, stock kernel",
            vec!["order::late".to_owned()],
            "by name",
        );
        report.leave_out("explorer, stock kernel", Vec::new(), "by name");
        let text = of(&report).to_string().unwrap();
        for part in [
            "tests=\"4\" failures=\"1\"",
            "<testcase name=\"all of it\" classname=\"format\" time=\"2.000\">",
            "<testcase name=\"row:munmap\" classname=\"VM tests, stock kernel\">",
            "<failure message=\"two bytes &lt; three\">",
            "<skipped message=\"left out, by name\"/>",
            "<testsuite name=\"explorer, stock kernel\"",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert_eq!(text.matches("<skipped").count(), 2, "{text}");
    }

    #[test]
    fn a_part_that_failed_without_a_test_that_did_has_failed_as_a_whole() {
        let mut report = Report::default();
        report.add("host tests", Counts::one(false), Duration::ZERO);
        report.add_cases([Case {
            name: "a".to_owned(),
            outcome: Outcome::Passed,
        }]);
        let mut failure = Failure::new("as a whole");
        failure.lines.push("it does not compile".to_owned());
        report.add_failures("host tests", [failure]);
        let text = of(&report).to_string().unwrap();
        assert!(text.contains("failures=\"1\""), "{text}");
        assert!(text.contains("it does not compile"), "{text}");
    }
}
