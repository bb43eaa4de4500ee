//! `cargo xtask check` and `cargo xtask test`: every part in turn, one summary.
//!
//! It knows which parts there are; what they find is `report`'s.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};
use hmm_tests::artifacts::MANIFEST_VARIABLE;
use hmm_tests::vm::KERNEL_VARIABLE;

use crate::args::{KernelChoice, TestArgs};
use crate::cargo::Checkout;
use crate::driver;
use crate::prepare::{Foundation, Prepared};
use crate::report::{Counts, Report};

/// The package whose tests start virtual machines.
const VM_TESTS: &str = "hmm-tests";

/// The package whose tests hold the specification's prose against its code.
const SPEC: &str = "virtio-hmm-spec";

/// `cargo xtask check`.
pub(crate) fn check() -> Result<ExitCode> {
    let mut suite = Suite::new()?;
    suite.host_parts()?;
    Ok(suite.close())
}

/// `cargo xtask test`.
pub(crate) fn test(args: &TestArgs) -> Result<ExitCode> {
    let mut suite = Suite::new()?;
    suite.host_parts()?;
    let prepared = suite.single("set-up and build", |suite| {
        let foundation = Foundation::prepare(&suite.checkout, &args.kernels)?;
        Prepared::on(&foundation, &suite.checkout).map(|prepared| (foundation, prepared))
    });
    if let Some((foundation, prepared)) = prepared {
        for kernel in &foundation.kernels {
            suite.single(&format!("driver lints, {} kernel", kernel.name), |suite| {
                driver::lint(&foundation.toolbox, kernel, &suite.checkout)
            });
        }
        let reports = &prepared.artifacts.reports;
        forget_reports(reports)?;
        let manifest = prepared.write_manifest()?;
        for &kernel in &args.kernels {
            suite.vm_tests(manifest, kernel)?;
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

    /// What needs neither toolbox nor virtual machine.
    fn host_parts(&mut self) -> Result<()> {
        let mut format = self.checkout.cargo();
        format.args(["fmt", "--all", "--check"]);
        self.check("format", &mut format)?;
        let mut driver_format = driver::format_check(&self.checkout)?;
        self.check("driver format", &mut driver_format)?;

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
            // Its program has the name of the library, and so would its pages.
            .args(["--exclude", "hmm-tool"])
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
        self.harness("host tests", &mut host)
    }

    fn vm_tests(&mut self, manifest: &Path, kernel: KernelChoice) -> Result<()> {
        let mut command = self.checkout.cargo();
        command
            .args(["test", "--release", "--package", VM_TESTS, "--no-fail-fast"])
            .env(MANIFEST_VARIABLE, manifest)
            .env(KERNEL_VARIABLE, kernel.name());
        self.harness(&format!("VM tests, {} kernel", kernel.name()), &mut command)
    }

    /// A part that is one yes or no; its value if it went well.
    fn single<T>(&mut self, name: &str, part: impl FnOnce(&Self) -> Result<T>) -> Option<T> {
        let begun = begin(name);
        let result = part(self);
        self.report
            .add(name, Counts::one(result.is_ok()), begun.elapsed());
        result
            .inspect_err(|error| eprintln!("error: {name}: {error:#}"))
            .ok()
    }

    /// A part that is one command's success.
    fn check(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let begun = begin(name);
        let status = command
            .status()
            .with_context(|| format!("starting {}", command.get_program().to_string_lossy()))?;
        self.report
            .add(name, Counts::one(status.success()), begun.elapsed());
        Ok(())
    }

    /// A part that is Rust's test harness: its output is shown and its results are counted.
    fn harness(&mut self, name: &str, command: &mut Command) -> Result<()> {
        let begun = begin(name);
        let mut child = command
            .stdout(Stdio::piped())
            .spawn()
            .context("starting cargo")?;
        let output = child.stdout.take().context("the output is a pipe")?;
        let mut counts = Counts::default();
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context("reading the tests' output")?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            counts.add_line(&line);
        }
        let status = child.wait().context("waiting for the tests")?;
        // A harness that did not compile, or died, has no failed test to show.
        if !status.success() && counts.failed == 0 || counts == Counts::default() {
            counts.failed += 1;
        }
        self.report.add(name, counts, begun.elapsed());
        Ok(())
    }

    /// Prints the summary.
    fn close(self) -> ExitCode {
        println!("\n{}", self.report);
        if self.report.is_good() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Removes what the tests of an earlier run left for people to read.
fn forget_reports(directory: &Path) -> Result<()> {
    fs::remove_dir_all(directory)
        .and_then(|()| fs::create_dir(directory))
        .with_context(|| format!("emptying {}", directory.display()))
}

/// Prints what the tests of this run left for people to read.
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
        println!("\n{text}\nkept in {}", report.display());
    }
    Ok(())
}

/// Prints a part's title.
fn begin(name: &str) -> Instant {
    println!("\n--- {name}");
    Instant::now()
}
