//! `cargo xtask check` and `cargo xtask test`: run all parts in turn, with one summary.
//!
//! It knows the parts; `report` has their results.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use hmm_cli::{remark, say};
use hmm_explorer::schedule::Shard;
use hmm_vm::artifacts::MANIFEST_VARIABLE;
use hmm_vm::vm::KERNEL_VARIABLE;

use crate::args::{BuildArgs, KernelChoice, TestArgs};
use crate::layers;
use crate::patches;
use crate::run::explore::{self, Search};
use crate::run::harness::Harness;
use crate::run::report::{Counts, Failure, Report};
use crate::setup::cargo::{Checkout, Purpose};
use crate::setup::driver;
use crate::setup::prepare::{Foundation, Prepared};

/// The package whose tests start virtual machines.
const VM_TESTS: &str = "hmm-tests";

/// The module of its tests that only the stock kernel can pass. It is not run with other kernels.
const STOCK_ONLY: &str = "stock_only";

/// Its modules that do not test the driver, but the fixture and the device alone. The guest's kernel
/// makes no difference to them, so that they run on the first of the kernels only.
const ONE_KERNEL: [&str; 2] = ["harness::", "hostile::"];

/// The package whose tests compare the specification's prose with its code.
const SPEC: &str = "virtio-hmm-spec";

/// The package of the device, which has the benchmark of its parts.
const DAEMON: &str = "vhost-device-hmm";

/// `cargo xtask check`.
pub(crate) fn check() -> Result<ExitCode> {
    let mut suite = Suite::new()?;
    suite.host_parts()?;
    Ok(suite.close())
}

/// `cargo xtask lint`.
pub(crate) fn lint(args: &BuildArgs) -> Result<ExitCode> {
    let mut suite = Suite::new()?;
    let foundation = Foundation::prepare(&suite.checkout, &args.kernels)?;
    suite.driver_lints(&foundation);
    Ok(suite.close())
}

/// `cargo xtask test`.
pub(crate) fn test(args: &TestArgs) -> Result<ExitCode> {
    let mut suite = Suite::new()?;
    suite.host_parts()?;
    let prepared = suite.single("set-up and build", |suite| {
        let foundation = Foundation::prepare(&suite.checkout, &args.kernels)?;
        Prepared::on(&foundation, &suite.checkout, Purpose::Tests)
            .map(|prepared| (foundation, prepared))
    });
    if let Some((foundation, prepared)) = prepared {
        suite.driver_lints(&foundation);
        suite.patches(&foundation);
        let reports = &prepared.artifacts.reports;
        forget_reports(reports)?;
        let manifest = prepared.write_manifest()?;
        for (index, &kernel) in args.kernels.iter().enumerate() {
            suite.vm_tests(manifest, kernel, index == 0)?;
            suite.explore(&prepared, kernel, args);
        }
        show_reports(reports)?;
    }
    Ok(suite.close())
}

/// A run in progress.
#[derive(Debug)]
struct Suite {
    checkout: Checkout,
    report: Report,
}

impl Suite {
    fn new() -> Result<Self> {
        Ok(Self {
            checkout: Checkout::locate()?,
            report: Report::default(),
        })
    }

    /// The parts that need neither toolbox nor virtual machine.
    fn host_parts(&mut self) -> Result<()> {
        let mut format = self.checkout.cargo();
        format.args(["fmt", "--all", "--check"]);
        self.check("format", &mut format)?;
        let mut driver_format = driver::format_check(&self.checkout)?;
        self.check("driver format", &mut driver_format)?;
        self.single("layers", |suite| layers::check(&suite.checkout.root));

        let mut lints = self.checkout.cargo();
        lints
            .args(["clippy", "--workspace", "--all-targets"])
            .args(["--", "--deny", "warnings"]);
        self.check("lints", &mut lints)?;

        let mut documentation = self.checkout.cargo();
        documentation
            .args([
                "doc",
                "--workspace",
                "--no-deps",
                "--document-private-items",
            ])
            .env("RUSTDOCFLAGS", "--deny warnings");
        self.check("documentation", &mut documentation)?;

        let mut spec = self.checkout.cargo();
        spec.args(["test", "--package", SPEC, "--no-fail-fast"]);
        self.harness("specification", &mut spec)?;

        let mut host = self.checkout.cargo();
        host.args(["test", "--workspace", "--no-fail-fast"]).args([
            "--exclude",
            SPEC,
            "--exclude",
            VM_TESTS,
        ]);
        self.harness("host tests", &mut host)?;

        // No other part notices that a benchmark can no longer be run.
        let mut benchmark = self.checkout.cargo();
        benchmark.args([
            "test",
            "--release",
            "--package",
            DAEMON,
            "--bench",
            "device",
        ]);
        self.check("benchmark", &mut benchmark)
    }

    fn vm_tests(&mut self, manifest: &Path, kernel: KernelChoice, is_first: bool) -> Result<()> {
        let mut command = self.checkout.cargo();
        command
            .args(["test", "--release", "--package", VM_TESTS, "--no-fail-fast"])
            .env(MANIFEST_VARIABLE, manifest)
            .env(KERNEL_VARIABLE, kernel.name())
            .arg("--");
        if kernel != KernelChoice::Stock {
            command.args(["--skip", STOCK_ONLY]);
        }
        if !is_first {
            command.args(ONE_KERNEL.iter().flat_map(|module| ["--skip", *module]));
        }
        self.harness(&format!("VM tests, {} kernel", kernel.name()), &mut command)
    }

    /// The checks of the driver by its compilers, of its machine code, and of its documentation. The
    /// latter does not depend on the kernel's configuration, so one kernel is enough.
    fn driver_lints(&mut self, foundation: &Foundation) {
        for kernel in &foundation.kernels {
            self.single(&format!("driver lints, {} kernel", kernel.name), |suite| {
                driver::lint(&foundation.toolbox, kernel, &suite.checkout)
            });
            if kernel.name == KernelChoice::Stock.name() {
                self.single("driver documentation", |suite| {
                    driver::document(&foundation.toolbox, kernel, &suite.checkout)
                });
            }
        }
    }

    /// The patches for the kernel: that they apply, build, and pass their tests.
    fn patches(&mut self, foundation: &Foundation) {
        self.single("patches for the kernel", |suite| {
            let kernel = foundation.kernels.first().context("there is a kernel")?;
            patches::prove(&foundation.toolbox, &suite.checkout, &kernel.tree)
        });
    }

    /// A limited search for bugs that appear when something is late.
    fn explore(&mut self, prepared: &Prepared, kernel: KernelChoice, args: &TestArgs) {
        self.single(&format!("explorer, {} kernel", kernel.name()), |suite| {
            let search = Search {
                kernel,
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

    /// Runs a part that passes or fails as a whole. Returns its value if it passed.
    fn single<T>(&mut self, name: &str, part: impl FnOnce(&Self) -> Result<T>) -> Option<T> {
        let begun = begin(name);
        let result = part(self);
        self.report
            .add(name, Counts::one(result.is_ok()), begun.elapsed());
        result
            .inspect_err(|error| {
                remark!("error: {name}: {error:#}");
                let mut failure = Failure::new("as a whole");
                failure.lines = format!("{error:#}").lines().map(str::to_owned).collect();
                self.report.add_failures(name, [failure]);
            })
            .ok()
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
        self.report.add(name, counts, begun.elapsed());
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
