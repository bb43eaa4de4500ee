//! The tests in virtual machines: which there are, which of them run, and what they tried.
//!
//! It knows Rust's test harness, and two tests that try many things one after the other, which can
//! be chosen from one by one: the rows of the contract, and the kernel's own tests of HMM.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{ensure, Context, Result};
use hmm_vm::artifacts::{self, Artifacts, MANIFEST_VARIABLE};
use hmm_vm::cases::{self, Kind};
use hmm_vm::kselftest;
use hmm_vm::vm::KERNEL_VARIABLE;

use crate::run::names::Names;
use crate::run::report::{Case, Outcome};
use crate::setup::cargo::Checkout;

/// The package of these tests.
pub(crate) const PACKAGE: &str = "hmm-tests";

/// The modules of its tests that only the stock kernel can pass.
const STOCK_ONLY: &str = "stock_only::";

/// The modules that run on the first of the kernels only: they test the fixture, the device alone or
/// what is the same on top of any driver, or run programs that take too long on a kernel that checks
/// itself.
const ONE_KERNEL: [&str; 5] = [
    "chaos::",
    "harness::",
    "hostile::",
    "languages::",
    "userland::",
];

/// The module that runs on a further release, whose memory management differs.
const EACH_RELEASE: &str = "contract::";

/// The tests that try many things, and of what kind these are.
const COLLECTIONS: [(&str, Kind); 2] = [
    ("contract::every_row_of_the_contract_is_kept", Kind::Rows),
    (
        "kernel_suite::every_test_of_the_kernel_passes_on_our_device",
        Kind::HmmTests,
    ),
];

/// What tests are also called.
const ALSO: [(&str, &str); 2] = [
    (
        "contract::whatever_is_done_at_random_every_byte_is_what_it_may_be",
        "model",
    ),
    (COLLECTIONS[1].0, "hmm-tests"),
];

pub(crate) const BY_NAME: &str = "by name";
const BY_KERNEL: &str = "as only the stock kernel can pass them";
const REPEATED: &str = "as they have run on another kernel, which is enough for them";
pub(crate) const ONE_RELEASE: &str = "as one release is enough for them";

/// What the kernel is among those that are tested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    First,
    /// Another build of a release that is tested.
    Further,
    /// Another release.
    FurtherRelease,
}

/// All tests in virtual machines.
#[derive(Debug)]
pub(crate) struct Catalogue {
    tests: Vec<String>,
    /// What the tests that try many things try.
    inner: BTreeMap<&'static str, Vec<String>>,
}

/// The tests that run.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Choice {
    pub(crate) tests: Vec<String>,
    /// What of a kind is tried, if that is not all.
    pub(crate) some: BTreeMap<&'static str, Vec<String>>,
    /// What does not run, and why.
    pub(crate) left: Vec<(Vec<String>, &'static str)>,
}

impl Catalogue {
    /// Asks the programs that have the tests. What the kernel's own program has depends on the
    /// kernel.
    pub(crate) fn read(
        checkout: &Checkout,
        artifacts: &Artifacts,
        kernel: &artifacts::Kernel,
    ) -> Result<Self> {
        let list = output(
            checkout
                .cargo()
                .args(["test", "--quiet", "--release", "--package", PACKAGE])
                .args(["--", "--list", "--format", "terse"]),
        )?;
        let tests: Vec<String> = list
            .lines()
            .filter_map(|line| Some(line.strip_suffix(": test")?.to_owned()))
            .collect();
        let known = COLLECTIONS.map(|(test, _)| test).into_iter();
        for test in known.chain(ALSO.map(|(test, _)| test)) {
            ensure!(
                tests.iter().any(|one| one == test),
                "there is no test {test}"
            );
        }
        let rows = output(Command::new(artifacts.guest_program("hmm-contract")).arg("list"))?;
        let rows = rows
            .lines()
            .filter_map(|line| Some(line.split_once(": ")?.0.to_owned()));
        // It lists its tests on its standard error, and ends as if it had skipped something.
        let program = &kernel.for_tests().kernel_tests.program;
        let listed = Command::new(program)
            .arg("-l")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("starting {}", program.display()))?;
        let hmm_tests = kselftest::listed(&String::from_utf8_lossy(&listed.stderr))
            .with_context(|| format!("asking {} for its tests", program.display()))?;
        let inner = BTreeMap::from([
            (Kind::Rows.name(), rows.collect::<Vec<_>>()),
            (Kind::HmmTests.name(), hmm_tests),
        ]);
        ensure!(
            inner.values().all(|names| !names.is_empty()),
            "a test has nothing to try: {inner:?}"
        );
        Ok(Self { tests, inner })
    }

    /// All names, as they can be used to choose.
    pub(crate) fn names(&self) -> impl Iterator<Item = String> + '_ {
        let inner = self
            .inner
            .iter()
            .flat_map(|(kind, names)| names.iter().map(move |name| format!("{kind}:{name}")));
        self.tests.iter().cloned().chain(inner)
    }

    /// What runs in the part with this name, on a kernel whose turn it is.
    pub(crate) fn choose(&self, part: &str, names: &Names, is_stock: bool, turn: Turn) -> Choice {
        let mut choice = Choice::default();
        let (mut by_name, mut by_kernel, mut repeated) = (Vec::new(), Vec::new(), Vec::new());
        let mut one_release = Vec::new();
        let all = names.want(&[part]);
        for test in &self.tests {
            let also = ALSO.iter().find(|(one, _)| one == test);
            let is_named = names.want(&[test, also.map_or("", |(_, also)| *also)]) || all;
            let kind = COLLECTIONS.iter().find(|(one, _)| one == test);
            let inner = kind.and_then(|(_, kind)| Some((*kind, self.inner.get(kind.name())?)));
            // Each name is asked for, so that none is taken for a name of nothing.
            let named: Vec<String> = inner.map_or_else(Vec::new, |(kind, inner)| {
                let is_named = |name: &&String| names.name(&[&format!("{}:{name}", kind.name())]);
                inner.iter().filter(is_named).cloned().collect()
            });
            if turn == Turn::FurtherRelease && !test.starts_with(EACH_RELEASE) {
                one_release.push(test.clone());
            } else if !is_stock && test.contains(STOCK_ONLY) {
                by_kernel.push(test.clone());
            } else if turn == Turn::Further
                && ONE_KERNEL.iter().any(|module| test.starts_with(module))
            {
                repeated.push(test.clone());
            } else if is_named {
                choice.tests.push(test.clone());
            } else if let (Some((kind, inner)), false) = (inner, named.is_empty()) {
                choice.tests.push(test.clone());
                let left = inner.iter().filter(|name| !named.contains(name));
                by_name.extend(left.map(|name| format!("{}:{name}", kind.name())));
                choice.some.insert(kind.name(), named);
            } else {
                by_name.push(test.clone());
            }
        }
        for (left, reason) in [
            (by_name, BY_NAME),
            (by_kernel, BY_KERNEL),
            (repeated, REPEATED),
            (one_release, ONE_RELEASE),
        ] {
            if !left.is_empty() {
                choice.left.push((left, reason));
            }
        }
        choice
    }
}

impl Choice {
    /// The command that runs the tests.
    pub(crate) fn command(&self, checkout: &Checkout, manifest: &Path, kernel: &str) -> Command {
        let mut command = checkout.cargo();
        command
            .args(["test", "--release", "--package", PACKAGE, "--no-fail-fast"])
            .env(MANIFEST_VARIABLE, manifest)
            .env(KERNEL_VARIABLE, kernel);
        for (_, kind) in COLLECTIONS {
            match self.some.get(kind.name()) {
                Some(names) => command.env(kind.variable(), names.join("\n")),
                None => command.env_remove(kind.variable()),
            };
        }
        if !self.left.is_empty() {
            command.args(["--", "--exact"]).args(&self.tests);
        }
        command
    }

    /// The results of the chosen tests and of what they tried. A test that was to run and has no
    /// result has failed; their number is returned, too.
    pub(crate) fn results(
        &self,
        mut results: Vec<Case>,
        reports: &Path,
        kernel: &str,
    ) -> Result<(Vec<Case>, u64)> {
        let mut without = 0;
        for test in &self.tests {
            if !results.iter().any(|case| case.name == *test) {
                results.push(Case {
                    name: test.clone(),
                    outcome: Outcome::Failed("it has no result".to_owned()),
                });
                without += 1;
            }
        }
        for (test, kind) in COLLECTIONS {
            if !self.tests.iter().any(|one| one == test) {
                continue;
            }
            for (name, outcome) in kind.results(reports, kernel)? {
                results.push(Case {
                    name: format!("{}:{name}", kind.name()),
                    outcome: match outcome {
                        cases::Outcome::Passed => Outcome::Passed,
                        cases::Outcome::Failed(reason) => Outcome::Failed(reason),
                        cases::Outcome::CannotRun(reason) => Outcome::NotRun(reason),
                    },
                });
            }
        }
        Ok((results, without))
    }
}

/// The output of a command that must succeed.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("starting {name}"))?;
    ensure!(output.status.success(), "{name} failed: {}", output.status);
    String::from_utf8(output.stdout).with_context(|| format!("reading the output of {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: &str = COLLECTIONS[0].0;
    const SUITE: &str = COLLECTIONS[1].0;
    const MODEL: &str = ALSO[0].0;
    const HIBERNATES: &str = "lifecycle::stock_only::a_system_hibernates";

    fn catalogue() -> Catalogue {
        let strings = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Catalogue {
            tests: strings(&[ROWS, MODEL, SUITE, HIBERNATES, "smoke::a_device_works"]),
            inner: BTreeMap::from([
                (
                    "row",
                    strings(&["munmap-while-it-moves", "fork-sees-writes"]),
                ),
                (
                    "hmm-tests",
                    strings(&["hmm.private.migrate", "hmm2.private.fork"]),
                ),
            ]),
        }
    }

    fn choose(words: &[&str], is_stock: bool) -> Choice {
        let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        catalogue().choose(
            "VM tests, stock kernel",
            &Names::new(&words),
            is_stock,
            Turn::First,
        )
    }

    #[test]
    fn without_names_all_run_and_nothing_is_left_out() {
        let choice = choose(&[], true);
        assert_eq!(choice.tests.len(), 5);
        assert!(choice.left.is_empty() && choice.some.is_empty());
    }

    #[test]
    fn another_kernel_leaves_out_what_only_the_stock_kernel_passes_and_says_so() {
        let choice = choose(&[], false);
        assert_eq!(choice.tests.len(), 4);
        assert_eq!(choice.left, [(vec![HIBERNATES.to_owned()], BY_KERNEL)]);
        // Also if it is named.
        assert!(choose(&["hibernates"], false).tests.is_empty());
        assert_eq!(choose(&["hibernates"], true).tests, [HIBERNATES]);
    }

    #[test]
    fn a_further_kernel_leaves_out_what_it_makes_no_difference_to_and_says_so() {
        let mut catalogue = catalogue();
        let fixture = "harness::a_guest_ends".to_owned();
        catalogue.tests.push(fixture.clone());
        let all = Names::new(&[]);
        let first = catalogue.choose("VM tests", &all, true, Turn::First);
        assert!(first.tests.contains(&fixture) && first.left.is_empty());
        let further = catalogue.choose("VM tests", &all, true, Turn::Further);
        assert_eq!(further.tests, catalogue.tests[..5]);
        assert_eq!(further.left, [(vec![fixture], REPEATED)]);
    }

    #[test]
    fn a_further_release_is_tried_by_the_contract_alone() {
        let choose = |words: &[String]| {
            let names = Names::new(words);
            catalogue().choose("VM tests", &names, false, Turn::FurtherRelease)
        };
        let choice = choose(&[]);
        assert_eq!(choice.tests, [ROWS, MODEL]);
        let [(left, ONE_RELEASE)] = &choice.left[..] else {
            panic!("{:?}", choice.left);
        };
        assert_eq!(left[..], catalogue().tests[2..]);
        // A name is sought among what can run.
        assert_eq!(choose(&["munmap".to_owned()]).tests, [ROWS]);
        assert!(choose(&["smoke".to_owned()]).tests.is_empty());
    }

    #[test]
    fn tests_are_chosen_by_a_part_of_one_of_their_names() {
        assert_eq!(choose(&["smoke"], true).tests, ["smoke::a_device_works"]);
        assert_eq!(choose(&["model"], true).tests, [MODEL]);
        assert_eq!(choose(&["contract"], true).tests, [ROWS, MODEL]);
        let left: usize = choose(&["contract"], true)
            .left
            .iter()
            .map(|(l, _)| l.len())
            .sum();
        assert_eq!(left, 3);
    }

    #[test]
    fn the_name_of_the_part_chooses_all_its_tests() {
        assert_eq!(choose(&["VM tests"], true), choose(&[], true));
    }

    #[test]
    fn one_row_is_tried_alone_and_the_others_are_left_out() {
        let choice = choose(&["munmap"], true);
        assert_eq!(choice.tests, [ROWS]);
        assert_eq!(choice.some["row"], ["munmap-while-it-moves"]);
        let left: Vec<_> = choice.left.iter().flat_map(|(left, _)| left).collect();
        assert!(
            left.contains(&&"row:fork-sees-writes".to_owned()),
            "{left:?}"
        );
        assert!(!left.contains(&&ROWS.to_owned()), "{left:?}");
    }

    #[test]
    fn a_name_may_be_that_of_rows_and_of_the_kernels_tests() {
        let choice = choose(&["fork"], true);
        assert_eq!(choice.tests, [ROWS, SUITE]);
        assert_eq!(choice.some["row"], ["fork-sees-writes"]);
        assert_eq!(choice.some["hmm-tests"], ["hmm2.private.fork"]);
    }

    #[test]
    fn the_whole_of_a_test_is_tried_if_the_test_is_named_too() {
        let choice = choose(&["contract", "munmap"], true);
        assert!(choice.some.is_empty(), "{choice:?}");
        assert_eq!(choose(&["hmm-tests"], true).tests, [SUITE]);
        assert!(choose(&["hmm-tests"], true).some.is_empty());
    }

    #[test]
    fn a_test_without_a_result_has_failed() {
        let reports = tempfile::tempdir().unwrap();
        let choice = choose(&["smoke"], true);
        let results = choice.results(Vec::new(), reports.path(), "stock");
        let (results, without) = results.unwrap();
        assert!(
            matches!(results[0].outcome, Outcome::Failed(_)),
            "{results:?}"
        );
        assert_eq!(without, 1);
    }
}
