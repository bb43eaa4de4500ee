//! Reads what KUnit prints on a kernel's console.
//!
//! It knows the format (Documentation/dev-tools/ktap.rst), not the tests.

use std::collections::BTreeSet;

use anyhow::{bail, ensure, Result};

/// What tells the lines of a suite from those of its cases.
const INDENT: &str = "    ";

/// A case, by its suite and its own name.
pub(super) type Case = (String, String);

/// The results of a boot.
#[derive(Debug, Default)]
pub(super) struct Results {
    passed: BTreeSet<Case>,
    /// Lines of results that are anything but good.
    bad: Vec<String>,
    /// Suites that have ended, as the plan counts them.
    suites: usize,
    planned: Option<usize>,
}

impl Results {
    /// Reads a console.
    pub(super) fn read(console: &str) -> Self {
        let mut results = Self::default();
        let mut suite = String::new();
        let (mut cases, mut planned_cases) = (0_usize, None);
        for line in console.lines() {
            let line = line.trim_end();
            let (is_case, text) = match line.strip_prefix(INDENT) {
                Some(text) => (true, text),
                None => (false, line),
            };
            if let Some(name) = text.strip_prefix("# Subtest: ").filter(|_| is_case) {
                name.clone_into(&mut suite);
                (cases, planned_cases) = (0, None);
            } else if let Some(count) = text.strip_prefix("1..") {
                let count = count.parse().ok();
                match is_case {
                    true => planned_cases = count,
                    false => results.planned = count,
                }
            } else if let Some((name, is_good)) = result(text) {
                if !is_good {
                    results.bad.push(format!("{suite}: {text}"));
                }
                if is_case {
                    cases += 1;
                    if is_good {
                        results.passed.insert((suite.clone(), name.to_owned()));
                    }
                } else {
                    results.suites += 1;
                    if planned_cases.is_some_and(|planned| planned != cases) {
                        results
                            .bad
                            .push(format!("{name}: {cases} cases have ended, not all"));
                    }
                }
            }
        }
        results
    }

    /// How many cases have passed.
    ///
    /// # Errors
    ///
    /// If any has not, if the tests did not end, or if one of those that must have run is missing.
    pub(super) fn check(&self, expected: &BTreeSet<Case>) -> Result<usize> {
        if !self.bad.is_empty() {
            bail!("KUnit tests have failed:\n{}", self.bad.join("\n"));
        }
        ensure!(
            self.planned == Some(self.suites),
            "of {:?} suites of KUnit tests {} have ended",
            self.planned,
            self.suites
        );
        let missing: Vec<_> = expected
            .difference(&self.passed)
            .map(|(suite, case)| format!("{suite}: {case}"))
            .collect();
        ensure!(
            missing.is_empty(),
            "KUnit tests did not run:\n{}",
            missing.join("\n")
        );
        ensure!(!self.passed.is_empty(), "no KUnit test has run");
        Ok(self.passed.len())
    }
}

/// The name in a line with a result, and whether that is good. A test that was skipped is not.
fn result(text: &str) -> Option<(&str, bool)> {
    let (rest, is_ok) = match text.strip_prefix("not ok ") {
        Some(rest) => (rest, false),
        None => (text.strip_prefix("ok ")?, true),
    };
    let (number, rest) = rest.split_once(' ')?;
    number.parse::<u32>().ok()?;
    let (name, remark) = rest.split_once('#').unwrap_or((rest, ""));
    Some((name.trim(), is_ok && !remark.trim().starts_with("SKIP")))
}

/// The cases that a Rust source declares.
pub(super) fn declared(source: &str) -> BTreeSet<Case> {
    let mut cases = BTreeSet::new();
    let mut suite = None;
    let mut is_test = false;
    for line in source.lines().map(str::trim) {
        let name = line
            .strip_prefix("#[kunit_tests(")
            .or(line.strip_prefix("#[macros::kunit_tests("));
        if let Some(name) = name {
            suite = name.strip_suffix(")]").map(str::to_owned);
        } else if line == "#[test]" {
            is_test = true;
        } else if let Some(name) = line.strip_prefix("fn ").filter(|_| is_test) {
            let name = name.split('(').next().unwrap_or_default();
            cases.extend(suite.clone().map(|suite| (suite, name.to_owned())));
            is_test = false;
        }
    }
    cases
}

/// The cases that the kernel's build makes of the examples in the documentation of a Rust source,
/// whose path is below `rust/kernel` (scripts/rustdoc_test_gen.rs).
pub(super) fn examples(path: &str, source: &str) -> BTreeSet<Case> {
    let file = path.replace(['/', '.'], "_");
    let mut count = 0;
    let mut is_inside = false;
    let mut is_run = false;
    for line in source.lines().map(str::trim) {
        let text = line.strip_prefix("///").or(line.strip_prefix("//!"));
        let Some(fence) = text.and_then(|text| text.trim().strip_prefix("```")) else {
            continue;
        };
        if is_inside {
            count += usize::from(is_run);
        } else {
            is_run = matches!(fence, "" | "rust");
        }
        is_inside = !is_inside;
    }
    let case = |number| format!("rust_doctest_kernel_{file}_{number}");
    let suite = || "rust_doctests_kernel".to_owned();
    (0..count).map(|number| (suite(), case(number))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "Linux version 7.3\nKTAP version 1\n1..2\n    KTAP version 1\n    \
        # Subtest: hmm\n    # module: kernel\n    1..2\n    ok 1 first\r\nsomething else\n    \
        ok 2 second # speed: slow\n# hmm: pass:2 fail:0 skip:0 total:2\nok 1 hmm\n    \
        KTAP version 1\n    # Subtest: other\n    1..1\n    ok 1 third\nok 2 other\n";

    const SOURCE: &str = "#[kunit_tests(hmm)]\nmod tests {\n    #[test]\n    fn first() {}\n\n    \
        fn helper() {}\n\n    #[test]\n    fn second() -> Result {\n";

    fn check(console: &str) -> Result<usize> {
        Results::read(console).check(&declared(SOURCE))
    }

    #[test]
    fn tests_that_have_all_passed_are_counted() {
        assert_eq!(declared(SOURCE).len(), 2);
        assert_eq!(check(GOOD).unwrap(), 3);
    }

    #[test]
    fn examples_that_are_run_are_cases() {
        let source = "//! ```\n//! f();\n//! ```\n//!\n//! ```text\n//! a\n//! ```\n\n    \
            /// ```rust\n    /// g();\n    /// ```\nlet text = \"```\";\n";
        let cases = examples("mm/frames.rs", source);
        let names: Vec<_> = cases.iter().map(|(_, name)| &**name).collect();
        assert_eq!(
            names,
            [
                "rust_doctest_kernel_mm_frames_rs_0",
                "rust_doctest_kernel_mm_frames_rs_1"
            ]
        );
    }

    #[test]
    fn a_test_that_failed_was_skipped_or_did_not_run_is_named() {
        let failed = GOOD
            .replace("ok 1 first", "not ok 1 first")
            .replace("ok 1 hmm", "not ok 1 hmm");
        let skipped = GOOD.replace("ok 1 first", "ok 1 first # SKIP no memory");
        let absent = GOOD.replace("ok 1 first", "ok 1 zeroth");
        for (console, what) in [
            (failed, "not ok 1 first"),
            (skipped, "SKIP"),
            (absent, "hmm: first"),
        ] {
            let error = check(&console).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn a_console_that_ends_early_is_no_success() {
        for end in [
            "    ok 2 second",
            "ok 1 hmm",
            "    KTAP version 1\n    # Subtest: other",
            "ok 2 other",
        ] {
            let cut = GOOD.find(end).unwrap();
            assert!(check(&GOOD[..cut]).is_err(), "cut before {end}");
        }
        let lost = GOOD.replace("    ok 2 second # speed: slow\n", "");
        let error = check(&lost).unwrap_err().to_string();
        assert!(error.contains("not all"), "{error}");
        assert!(check("").is_err());
    }
}
