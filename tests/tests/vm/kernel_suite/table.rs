//! The report of the kernel's tests for people: a table in Markdown, one row for each test.
//!
//! It does not judge.

use std::collections::BTreeMap;
use std::fmt;

use hmm_vm::kselftest::Verdict;

use super::outcome::{Half, Outcome};
use super::BENCHMARK;

/// The results on one kernel.
#[derive(Debug)]
pub(crate) struct Table<'a> {
    /// The kernel's name.
    pub(crate) kernel: &'a str,
    /// The kernel's release.
    pub(crate) release: &'a str,
    /// The digest of the program's source.
    pub(crate) source_sha256: &'a str,
    /// Whether the machine was emulated.
    pub(crate) emulated: bool,
    /// Every test, in the program's order.
    pub(crate) tests: &'a [String],
    /// The results on our device.
    pub(crate) ours: &'a Half,
    /// The results on the kernel's test driver, if it was tested.
    pub(crate) theirs: Option<&'a Half>,
    /// The kernel's complaints while its test driver was tested.
    pub(crate) said: &'a [String],
}

impl fmt::Display for Table<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.heading(f)?;
        self.summary(f)?;
        self.rows(f)?;
        self.reasons(f)?;
        self.measurements(f)?;
        self.complaints(f)
    }
}

impl Table<'_> {
    fn heading(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            kernel,
            release,
            source_sha256,
            ..
        } = self;
        let machine = if self.emulated {
            "emulated"
        } else {
            "with KVM"
        };
        writeln!(f, "# The kernel's tests of HMM on the {kernel} kernel\n")?;
        writeln!(
            f,
            "`hmm-tests.c` of Linux {release}, unchanged (SHA-256 `{source_sha256}`), in one boot\n\
             of a machine that was {machine}: first on virtio-hmm, then on the kernel's own test\n\
             driver, `test_hmm`. `cargo xtask test --kernel {kernel}` writes this table.\n"
        )
    }

    fn summary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        type Kind = fn(&Outcome) -> bool;
        let kinds: [(&str, Kind); 4] = [
            ("passed", Outcome::passed),
            ("failed", |outcome| {
                outcome.verdict() == Some(&Verdict::Failed)
            }),
            ("skipped", |outcome| {
                matches!(outcome.verdict(), Some(Verdict::Skipped(_)))
            }),
            ("interrupted or not run", |outcome| {
                outcome.verdict().is_none()
            }),
        ];
        writeln!(f, "| of {} | virtio-hmm | test_hmm |", self.tests.len())?;
        writeln!(f, "| --- | --- | --- |")?;
        for (name, is) in kinds {
            let theirs = self.theirs.map_or(0, |half| half.count(is));
            writeln!(f, "| {name} | {} | {theirs} |", self.ours.count(is))?;
        }
        let seconds = |half: &Half| format!("{} s", half.took.as_secs());
        let theirs = self.theirs.map(seconds).unwrap_or_default();
        writeln!(f, "| took | {} | {theirs} |\n", seconds(self.ours))
    }

    /// The tests of each variant under a heading of their own.
    fn rows(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for tests in self.tests.chunk_by(|a, b| split(a).0 == split(b).0) {
            let (variant, _) = split(&tests[0]);
            writeln!(f, "| {variant} | virtio-hmm | test_hmm | |")?;
            writeln!(f, "| --- | --- | --- | --- |")?;
            for name in tests {
                let (_, test) = split(name);
                let ours = self.ours.outcomes[name].to_string();
                let theirs = self.theirs.map(|half| half.outcomes[name].to_string());
                let differ = match &theirs {
                    Some(theirs) if *theirs != ours => "differs",
                    _ => "",
                };
                let theirs = theirs.unwrap_or_default();
                writeln!(f, "| {test} | {ours} | {theirs} | {differ} |")?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    /// The reasons of the tests that did not pass.
    fn reasons(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (driver, half) in self.halves() {
            let wrong = |outcome: &Outcome| !outcome.passed();
            if half.broken.is_none() && half.count(wrong) == 0 {
                continue;
            }
            writeln!(f, "## What did not pass on {driver}\n")?;
            if let Some(broken) = &half.broken {
                writeln!(f, "The run broke off:\n\n{}", block([broken]))?;
            }
            for (reason, tests) in self.grouped(half) {
                writeln!(f, "* {reason}: {}", tests.join(", "))?;
            }
            writeln!(f)?;
        }
        Ok(())
    }

    /// The tests that did not pass, grouped by outcome and reason.
    fn grouped(&self, half: &Half) -> BTreeMap<String, Vec<&str>> {
        let mut groups = BTreeMap::<_, Vec<&str>>::new();
        for name in self.tests {
            let outcome = &half.outcomes[name];
            let reason = match outcome.verdict() {
                Some(Verdict::Passed) => continue,
                Some(Verdict::Skipped(reason)) => reason.clone(),
                Some(Verdict::Failed) | None => remarks(outcome.notes()),
            };
            let group = if reason.is_empty() {
                outcome.to_string()
            } else {
                format!("{outcome}, {reason}")
            };
            groups.entry(group).or_default().push(name);
        }
        groups
    }

    /// The output of the benchmark, even if it did not end.
    fn measurements(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (driver, half) in self.halves() {
            for (name, outcome) in &half.outcomes {
                if name.ends_with(BENCHMARK) && !outcome.notes().is_empty() {
                    writeln!(f, "## {name} on {driver}\n\n{}", block(outcome.notes()))?;
                }
            }
        }
        Ok(())
    }

    fn complaints(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "## What the kernel complained of\n")?;
        writeln!(
            f,
            "While virtio-hmm was tested: of nothing, or this test fails.\n"
        )?;
        if self.said.is_empty() {
            writeln!(f, "While test_hmm was tested: of nothing.")
        } else {
            writeln!(f, "While test_hmm was tested:\n\n{}", block(self.said))
        }
    }

    fn halves(&self) -> impl Iterator<Item = (&'static str, &Half)> {
        let theirs = self.theirs.map(|half| ("test_hmm", half));
        [("virtio-hmm", self.ours)].into_iter().chain(theirs)
    }
}

/// Splits a name into the variant and the test.
fn split(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or(("", name))
}

/// Printed lines, unchanged.
fn block(lines: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let mut text = String::from("```text\n");
    for line in lines {
        text.push_str(line.as_ref());
        text.push('\n');
    }
    text.push_str("```\n");
    text
}

/// The harness's lines, without those of the test itself.
fn remarks(notes: &[String]) -> String {
    let remarks: Vec<_> = notes
        .iter()
        .filter_map(|note| note.strip_prefix("# "))
        .collect();
    remarks.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmm_vm::kselftest::TestResult;

    fn half(outcomes: &[(&String, Verdict)]) -> Half {
        let mut half = Half::new(&[]);
        for (name, verdict) in outcomes {
            let result = TestResult {
                name: (*name).clone(),
                verdict: verdict.clone(),
                notes: vec!["bench 7".into(), "# seen".into()],
            };
            half.outcomes
                .insert((*name).clone(), Outcome::Ended(result));
        }
        half
    }

    #[test]
    fn a_difference_stands_in_its_row_with_its_reason_below() {
        let tests = ["a.x.one", "a.x.two", "a.y.one"].map(str::to_owned);
        let [one, two, other] = &tests;
        let ours = half(&[
            (one, Verdict::Passed),
            (two, Verdict::Passed),
            (other, Verdict::Passed),
        ]);
        let theirs = half(&[
            (one, Verdict::Passed),
            (two, Verdict::Failed),
            (other, Verdict::Skipped("no wood".into())),
        ]);
        let table = Table {
            kernel: "stock",
            release: "1.2.3",
            source_sha256: "abc",
            emulated: true,
            tests: &tests,
            ours: &ours,
            theirs: Some(&theirs),
            said: &["WARNING: a".to_owned()],
        }
        .to_string();
        for line in [
            "| one | passed | passed |  |",
            "| two | passed | failed | differs |",
            "| one | passed | skipped | differs |",
            "| passed | 3 | 1 |",
            "* failed, seen: a.x.two",
            "* skipped, no wood: a.y.one",
            "WARNING: a",
        ] {
            assert!(
                table.lines().any(|found| found == line),
                "{line} is missing in\n{table}"
            );
        }
        assert!(!table.contains("did not pass on virtio-hmm"), "{table}");
    }
}
