//! `cargo xtask check` and `cargo xtask test`: run all parts in turn, with one summary.
//!
//! It knows the parts; `report` has their results.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use hmm_cli::{remark, say};
use hmm_explorer::schedule::Shard;
use hmm_vm::kconfig::Options;

use crate::args::{KernelChoice, LintArgs, TestArgs};
use crate::layers;
use crate::patches;
use crate::run::book::Reading;
use crate::run::explore::{self, Search};
use crate::run::harness::Harness;
use crate::run::junit;
use crate::run::ktap::Ktap;
use crate::run::machines::{self, Catalogue, Turn, BY_NAME, ONE_RELEASE};
use crate::run::names::Names;
use crate::run::report::{Case, Counts, Failure, Report};
use crate::run::virtme_ng;
use crate::setup::cache::Cache;
use crate::setup::cargo::{Checkout, Purpose};
use crate::setup::driver;
use crate::setup::kernel::Kernel;
use crate::setup::needs::Lacks;
use crate::setup::perfetto;
use crate::setup::prepare::{Foundation, Prepared};

/// The package whose tests compare the specification's prose with its code.
const SPEC: &str = "virtio-hmm-spec";

/// The package of the device, which has the benchmark of its parts.
const DAEMON: &str = "vhost-device-hmm";

/// Why parts that are about this checkout do not run when only kernels of the user's are tested.
const NOT_THE_KERNEL: &str = "as not about the kernel";

/// `cargo xtask check`.
pub(crate) fn check() -> Result<ExitCode> {
    let mut suite = Suite::new(Names::new(&[]), true)?;
    suite.host_parts()?;
    Ok(suite.close())
}

/// `cargo xtask lint`.
pub(crate) fn lint(args: &LintArgs) -> Result<ExitCode> {
    let mut suite = Suite::new(Names::new(&[]), true)?;
    let foundation = Foundation::prepare(&suite.checkout, &args.kernels)?;
    suite.driver_lints(&foundation);
    Ok(suite.close())
}

/// `cargo xtask test`.
pub(crate) fn test(args: &TestArgs) -> Result<ExitCode> {
    if args.list {
        return list(args);
    }
    // What is printed from here on, by commands too, is for people.
    let ktap = args.ktap.then(only_for_ktap).transpose()?;
    let is_users = |kernel: &KernelChoice| matches!(kernel, KernelChoice::Built(_));
    let about_checkout = !args.kernels.iter().all(is_users);
    let mut suite = Suite::new(Names::new(&args.names), about_checkout)?;
    suite.host_parts()?;
    suite.book()?;
    suite.timelines()?;
    // Names that are those of parts without a machine need none of what follows.
    if suite.names.is_empty() || !suite.names.are_all_used() {
        suite.machine_parts(args)?;
    }
    if let Err(error) = suite
        .names
        .check()
        .and_then(|()| suite.check_that_any_ran())
    {
        suite.fail("names", &error);
    }
    if let Some(path) = &args.junit {
        junit::write(&suite.report, path)?;
    }
    if let Some(mut out) = ktap {
        write!(out, "{}", Ktap(&suite.report)).context("writing KTAP")?;
    }
    Ok(suite.close())
}

/// Makes standard output what standard error is, for us and for all commands, and returns what it
/// was.
fn only_for_ktap() -> Result<fs::File> {
    let out = rustix::io::dup(io::stdout()).context("keeping the standard output")?;
    rustix::stdio::dup2_stdout(io::stderr()).context("replacing the standard output")?;
    Ok(out.into())
}

/// Prints what can be named: the parts, and with the first kernel the tests in machines.
fn list(args: &TestArgs) -> Result<ExitCode> {
    let checkout = Checkout::locate()?;
    let kernel = args.kernels.first().context("there is a kernel")?;
    let (prepared, kernel) = Prepared::for_kernel(&checkout, kernel, Purpose::Tests)?;
    for part in HOST_PARTS {
        say!("{part}");
    }
    say!("{BOOK}");
    say!("{TIMELINES}");
    for part in MACHINE_PARTS {
        say!("{part}");
    }
    say!("{}", part(DRIVER_LINTS, &kernel));
    say!("{}", part(EXPLORER, &kernel));
    say!("{}", part(VM_TESTS, &kernel));
    say!("{}", part(VIRTME_NG, &kernel));
    let artifacts = &prepared.artifacts;
    let catalogue = Catalogue::read(&checkout, artifacts, &artifacts.kernels[&kernel])?;
    for name in catalogue.names() {
        say!("{name}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The parts that need neither toolbox nor machine.
const HOST_PARTS: [&str; 8] = [
    "format",
    "driver format",
    "layers",
    "lints",
    "documentation",
    "specification",
    "host tests",
    "benchmark",
];

/// The part that needs a browser.
const BOOK: &str = "book";

/// The part that needs Python, and Perfetto's package for it.
const TIMELINES: &str = "timelines";

/// The package of timelines, whose test reads them by these definitions.
const TIMELINE: &str = "hmm-timeline";

/// What comes before all parts that need the toolbox.
const SET_UP: &str = "set-up and build";

/// Parts that need the toolbox, once.
const MACHINE_PARTS: [&str; 2] = ["driver documentation", "patches for the kernel"];

/// Parts of each kernel, without its name.
const DRIVER_LINTS: &str = "driver lints";
const VM_TESTS: &str = "VM tests";
const EXPLORER: &str = "explorer";
const VIRTME_NG: &str = "virtme-ng";

/// What the kernel with this number is among those that are tested.
fn turn(kernel: &Kernel, index: usize) -> Turn {
    match index {
        0 => Turn::First,
        _ if kernel.is_earlier() => Turn::FurtherRelease,
        _ => Turn::Further,
    }
}

/// The name of a kernel's part.
fn part(name: &str, kernel: &str) -> String {
    format!("{name}, {kernel} kernel")
}

/// A run in progress.
#[derive(Debug)]
struct Suite {
    checkout: Checkout,
    report: Report,
    names: Names,
    /// Whether parts run that are about this checkout and not about a kernel.
    about_checkout: bool,
}

impl Suite {
    fn new(names: Names, about_checkout: bool) -> Result<Self> {
        Ok(Self {
            checkout: Checkout::locate()?,
            report: Report::default(),
            names,
            about_checkout,
        })
    }

    /// Whether a part runs. If not, that is noted.
    fn wants(&mut self, name: &str, is_about_checkout: bool) -> bool {
        let is_wanted = match self.names.is_empty() {
            true => self.about_checkout || !is_about_checkout,
            false => self.names.name(&[name]),
        };
        if !is_wanted {
            let reason = match self.names.is_empty() {
                true => NOT_THE_KERNEL,
                false => BY_NAME,
            };
            self.report.leave_out(name, Vec::new(), reason);
        }
        is_wanted
    }

    /// Checks that more than the preparation has run, if the user has named something.
    fn check_that_any_ran(&self) -> Result<()> {
        let mut parts = self.report.parts.iter();
        ensure!(
            self.names.is_empty() || parts.any(|part| part.name != SET_UP),
            "nothing of what was named runs on such a kernel"
        );
        Ok(())
    }

    /// The parts that need the toolbox or a machine.
    fn machine_parts(&mut self, args: &TestArgs) -> Result<()> {
        let prepared = self.single(SET_UP, |suite| {
            let foundation = Foundation::prepare(&suite.checkout, &args.kernels)?;
            Prepared::on(&foundation, &suite.checkout, Purpose::Tests)
                .map(|prepared| (foundation, prepared))
        });
        let Some((foundation, prepared)) = prepared else {
            return Ok(());
        };
        self.driver_lints(&foundation);
        self.patches(&foundation);
        let reports = &prepared.artifacts.reports;
        forget_reports(reports)?;
        let manifest = prepared.write_manifest()?;
        for (index, kernel) in foundation.kernels.iter().enumerate() {
            let lacks = Lacks::of_tests(&Options::read(&kernel.build.config())?);
            if !lacks.is_empty() {
                self.report.note(format!(
                    "the kernel {} lacks options without which some tests fail:\n{lacks}",
                    kernel.name
                ));
            }
            let turn = turn(kernel, index);
            self.vm_tests(manifest, &prepared, kernel, turn)?;
            if turn == Turn::FurtherRelease {
                for name in [EXPLORER, VIRTME_NG] {
                    let name = part(name, &kernel.name);
                    self.report.leave_out(&name, Vec::new(), ONE_RELEASE);
                }
            } else {
                self.explore(&prepared, kernel, args);
                self.virtme_ng(&prepared, kernel)?;
            }
        }
        show_reports(reports)
    }

    /// The parts that need neither toolbox nor virtual machine.
    fn host_parts(&mut self) -> Result<()> {
        let [format, driver_format, layers, lints, documentation, specification, host, benchmark] =
            HOST_PARTS;
        if self.wants(format, true) {
            let mut command = self.checkout.cargo();
            command.args(["fmt", "--all", "--check"]);
            self.check(format, &mut command)?;
        }
        if self.wants(driver_format, true) {
            let mut command = driver::format_check(&self.checkout)?;
            self.check(driver_format, &mut command)?;
        }
        if self.wants(layers, true) {
            self.single(layers, |suite| layers::check(&suite.checkout.root));
        }
        if self.wants(lints, true) {
            let mut command = self.checkout.cargo();
            command
                .args(["clippy", "--workspace", "--all-targets"])
                .args(["--", "--deny", "warnings"]);
            self.check(lints, &mut command)?;
        }
        if self.wants(documentation, true) {
            let mut command = self.checkout.cargo();
            command
                .args([
                    "doc",
                    "--workspace",
                    "--no-deps",
                    "--document-private-items",
                ])
                .env("RUSTDOCFLAGS", "--deny warnings");
            self.check(documentation, &mut command)?;
        }
        if self.wants(specification, true) {
            let mut command = self.checkout.cargo();
            command.args(["test", "--package", SPEC, "--no-fail-fast"]);
            self.harness(specification, &mut command)?;
        }
        if self.wants(host, true) {
            let mut command = self.checkout.cargo();
            command
                .args(["test", "--workspace", "--no-fail-fast"])
                .args(["--exclude", SPEC, "--exclude", machines::PACKAGE]);
            self.harness(host, &mut command)?;
        }
        if self.wants(benchmark, true) {
            // No other part notices that a benchmark can no longer be run.
            let mut command = self.checkout.cargo();
            command
                .args(["test", "--release", "--package", DAEMON])
                .args(["--bench", "device"]);
            self.check(benchmark, &mut command)?;
        }
        Ok(())
    }

    /// The pages of the book, as a browser shows them.
    fn book(&mut self) -> Result<()> {
        if !self.wants(BOOK, true) {
            return Ok(());
        }
        match Reading::prepare(&self.checkout) {
            Ok(mut reading) => self.harness(BOOK, &mut reading.command),
            Err(error) => {
                self.fail(BOOK, &error);
                Ok(())
            }
        }
    }

    /// Timelines, as Perfetto's own definitions read them.
    fn timelines(&mut self) -> Result<()> {
        if !self.wants(TIMELINES, true) {
            return Ok(());
        }
        match Cache::of_user().and_then(|cache| perfetto::prepare(&cache)) {
            Ok(package) => {
                let mut command = self.checkout.cargo();
                command
                    .args(["test", "--package", TIMELINE, "--features", "reader"])
                    .args(["--test", "reader"])
                    .env("PYTHONPATH", package);
                self.harness(TIMELINES, &mut command)
            }
            Err(error) => {
                self.fail(TIMELINES, &error);
                Ok(())
            }
        }
    }

    /// The tests in virtual machines. Some are left out if the kernel is not the first one.
    fn vm_tests(
        &mut self,
        manifest: &Path,
        prepared: &Prepared,
        kernel: &Kernel,
        turn: Turn,
    ) -> Result<()> {
        let name = part(VM_TESTS, &kernel.name);
        let artifacts = &prepared.artifacts;
        let entry = &artifacts.kernels[&kernel.name];
        // It says no result of its own unless it fails: nothing can run without it.
        let catalogue = match Catalogue::read(&self.checkout, artifacts, entry) {
            Ok(catalogue) => catalogue,
            Err(error) => {
                self.fail(&name, &error);
                return Ok(());
            }
        };
        let choice = catalogue.choose(&name, &self.names, kernel.is_stock(), turn);
        if choice.tests.is_empty() {
            self.report.leave_out(&name, Vec::new(), BY_NAME);
            return Ok(());
        }
        for (tests, reason) in &choice.left {
            self.report.leave_out(&name, tests.clone(), reason);
        }
        let mut command = choice.command(&self.checkout, manifest, &kernel.name);
        self.run_harness(&name, &mut command, |cases| {
            choice.results(cases, &artifacts.reports, &kernel.name)
        })
    }

    /// The checks of the driver by its compilers, of its machine code, and of its documentation. The
    /// latter does not depend on the kernel's configuration, so one kernel is enough.
    fn driver_lints(&mut self, foundation: &Foundation) {
        for (index, kernel) in foundation.kernels.iter().enumerate() {
            let name = part(DRIVER_LINTS, &kernel.name);
            if turn(kernel, index) == Turn::FurtherRelease {
                self.report.leave_out(&name, Vec::new(), ONE_RELEASE);
            } else if self.wants(&name, true) {
                self.single(&name, |suite| {
                    driver::lint(&foundation.toolbox, kernel, &suite.checkout)
                });
            }
        }
        let [documentation, _] = MACHINE_PARTS;
        if self.wants(documentation, true) {
            self.single(documentation, |suite| {
                let kernel = foundation.any_kernel()?;
                driver::document(&foundation.toolbox, kernel, &suite.checkout)
            });
        }
    }

    /// The patches for the kernel: that they apply, build, and pass their tests.
    fn patches(&mut self, foundation: &Foundation) {
        let [_, patches] = MACHINE_PARTS;
        if !self.wants(patches, true) {
            return;
        }
        self.single(patches, |suite| {
            let kernel = foundation.any_kernel()?;
            patches::prove(&foundation.toolbox, &suite.checkout, &kernel.build.tree)
        });
    }

    /// A limited search for bugs that appear when something is late.
    fn explore(&mut self, prepared: &Prepared, kernel: &Kernel, args: &TestArgs) {
        let name = part(EXPLORER, &kernel.name);
        if !self.wants(&name, false) {
            return;
        }
        self.single(&name, |suite| {
            let search = Search {
                kernel: kernel.name.clone(),
                seed: args.explore_seed,
                time: Duration::from_secs(args.explore),
                shard: Shard::WHOLE,
                pattern: None,
                keep_going: false,
            };
            let output = explore::output(&suite.checkout)?;
            let findings = search.run(&suite.checkout, &prepared.artifacts, &output)?;
            let texts: Vec<_> = findings.iter().map(ToString::to_string).collect();
            ensure!(findings.is_empty(), "{}", texts.join("\n"));
            Ok(())
        });
    }

    /// The recipe for virtme-ng, where virtme-ng is.
    fn virtme_ng(&mut self, prepared: &Prepared, kernel: &Kernel) -> Result<()> {
        let name = part(VIRTME_NG, &kernel.name);
        if !self.wants(&name, false) {
            return Ok(());
        }
        if let Some(obstacle) = virtme_ng::obstacle(&Options::read(&kernel.build.config())?) {
            self.report.leave_out(&name, Vec::new(), obstacle);
            return Ok(());
        }
        self.single(&name, |suite| {
            let entry = &prepared.artifacts.kernels[&kernel.name];
            let directory = suite.checkout.output.join(VIRTME_NG);
            virtme_ng::run(&prepared.artifacts, entry, &directory)
        });
        Ok(())
    }

    /// Runs a part that passes or fails as a whole. Returns its value if it passed.
    fn single<T>(&mut self, name: &str, part: impl FnOnce(&Self) -> Result<T>) -> Option<T> {
        let begun = begin(name);
        let result = part(self);
        self.report
            .add(name, Counts::one(result.is_ok()), begun.elapsed());
        result.inspect_err(|error| self.say(name, error)).ok()
    }

    /// Adds a part that has failed before it began.
    fn fail(&mut self, name: &str, error: &anyhow::Error) {
        self.report.add(name, Counts::one(false), Duration::ZERO);
        self.say(name, error);
    }

    /// Says why a part has failed.
    fn say(&mut self, name: &str, error: &anyhow::Error) {
        remark!("error: {name}: {error:#}");
        let mut failure = Failure::new("as a whole");
        failure.lines = format!("{error:#}").lines().map(str::to_owned).collect();
        self.report.add_failures(name, [failure]);
    }

    /// Runs a part that passes if a command succeeds.
    fn check(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let begun = begin(name);
        let status = command
            .status()
            .with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
        self.report
            .add(name, Counts::one(status.success()), begun.elapsed());
        Ok(())
    }

    /// Runs a part by Rust's test harness: its output is shown and its results are counted.
    fn harness(&mut self, name: &str, command: &mut Command) -> Result<()> {
        self.run_harness(name, command, |cases| Ok((cases, 0)))
    }

    /// The same. `complete` knows more of the results than the harness prints, and how many tests
    /// have none.
    fn run_harness(
        &mut self,
        name: &str,
        command: &mut Command,
        complete: impl FnOnce(Vec<Case>) -> Result<(Vec<Case>, u64)>,
    ) -> Result<()> {
        let begun = begin(name);
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .context("starting cargo")?;
        let output = child.stdout.take().context("the output is a pipe")?;
        let mut harness = Harness::default();
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("reading the tests' output")?;
            let line = String::from_utf8_lossy(&line);
            say!("{line}");
            harness.line(&line);
        }
        let status = child.wait().context("waiting for the tests")?;
        let mut counts = harness.counts;
        // If the harness did not compile, or died, no test has failed that could be shown.
        if !status.success() && counts.failed == 0 || counts == Counts::default() {
            counts.failed += 1;
        }
        let (cases, without_result) = complete(harness.cases())?;
        counts.failed += without_result;
        self.report.add(name, counts, begun.elapsed());
        self.report.add_cases(cases);
        self.report.add_failures(name, harness.failures);
        Ok(())
    }

    /// Prints the summary.
    fn close(self) -> ExitCode {
        say!("\n{}", self.report);
        if self.report.is_good() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Removes the reports that the tests of an earlier run wrote.
fn forget_reports(directory: &Path) -> Result<()> {
    fs::remove_dir_all(directory)
        .and_then(|()| fs::create_dir(directory))
        .with_context(|| format!("emptying {}", directory.display()))
}

/// Prints the reports that the tests of this run wrote.
fn show_reports(directory: &Path) -> Result<()> {
    let mut reports = fs::read_dir(directory)
        .and_then(|entries| {
            entries
                .map(|entry| entry.map(|entry| entry.path()))
                .collect::<io::Result<Vec<_>>>()
        })
        .with_context(|| format!("reading the directory {}", directory.display()))?;
    reports.sort();
    // The others are for the summary.
    reports.retain(|report| report.extension() == Some(OsStr::new("md")));
    for report in reports {
        let text =
            fs::read_to_string(&report).with_context(|| format!("reading {}", report.display()))?;
        say!("\n{text}\nkept in {}", report.display());
    }
    Ok(())
}

/// Prints a part's title.
fn begin(name: &str) -> Instant {
    say!("\n--- {name}");
    Instant::now()
}
