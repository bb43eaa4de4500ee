//! `cargo xtask bench`: runs the benchmarks, and shows and keeps their output.
//!
//! Benchmarks print a [`Line`](hmm_bench::Line) for each result; they decide what is measured.
//! `docs/benchmarks.md` describes what happens to the lines.

mod compare;
mod footprint;
mod interleaved;
mod lines;
mod markdown;
mod record;

use std::io::Write;
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use anyhow::{bail, Context, Result};
use hmm_cli::{output, remark, say};
use hmm_vm::artifacts::Artifacts;
use hmm_vm::guest::{Command, Status, Stream};
use hmm_vm::vm::{Vm, GIB, MIB};

use crate::args::{BenchArgs, BenchPart};
use crate::setup::cargo::{Checkout, Purpose};
use crate::setup::prepare::Prepared;
use crate::setup::progress;
use compare::Comparison;
use lines::Lines;
use record::{Guest, Record};

/// Room for the most memory that is mapped at once, or moved together with a copy of it, and for
/// the system.
const MEMORY: u64 = 3 * GIB;
const DEVICE_MEMORY: u64 = 512 * MIB;

/// Devices. The second one is for measurements of two devices.
const DEVICES: usize = 2;

/// Runs every benchmark, prints a table and writes the results.
pub(crate) fn bench(args: &BenchArgs) -> Result<ExitCode> {
    // First of all: an unreadable file is better reported before anything takes time.
    let old = args.compare.as_deref().map(Record::read).transpose()?;
    if args.icount && args.only.is_some_and(|only| !only.has_guest()) {
        bail!("--icount counts a guest's instructions, and that part has no guest");
    }
    let checkout = Checkout::locate()?;
    let mut record = Record::begin(&checkout)?;
    let mut lines = Lines::default();
    if args.has(BenchPart::Host) {
        progress::announce(
            "measuring the device's parts",
            "each in turns with plain code; half a minute",
        );
        on_host(&checkout, "device", &mut lines)?;
    }
    if args.has(BenchPart::Oversubscription) {
        progress::announce(
            "judging policies of memory",
            "on traces of the device's operations; a minute or two",
        );
        on_host(&checkout, "oversubscription", &mut lines)?;
    }
    if args.has(BenchPart::Guest) || args.has(BenchPart::Kernel) {
        let (prepared, kernel) =
            Prepared::for_kernel(&checkout, &args.kernel, Purpose::Measurements)?;
        let artifacts = &prepared.artifacts;
        record.versions.guest = Some(Guest::of(artifacts, &kernel, args.icount)?);
        if args.has(BenchPart::Guest) {
            in_guest(artifacts, &kernel, args.icount, &mut lines)?;
        }
        if args.has(BenchPart::Kernel) {
            progress::announce(
                "measuring our driver and the kernel's",
                "by the kernel's own benchmark, in turns; a minute for each turn",
            );
            let rounds = args.kernel_rounds;
            interleaved::measure(artifacts, &kernel, args.icount, rounds, &mut lines)?;
        }
    }
    if args.has(BenchPart::Builds) {
        footprint::builds(&checkout, &args.kernel, &mut lines)?;
    }
    record.take(lines);
    let path = match &args.json {
        Some(path) => path.clone(),
        None => default_path(&checkout, &record)?,
    };
    record.write(&path)?;
    say!("\nwritten to {}", path.display());
    if let Some(path) = &args.markdown {
        markdown::write(&record, path)?;
        say!("written to {}", path.display());
    }
    if let Some(old) = old {
        say!("\n{}", Comparison::of(&old, &record));
    }
    if record.failures.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    remark!(
        "error: {} things could not be measured",
        record.failures.len()
    );
    Ok(ExitCode::FAILURE)
}

/// A file that no other run writes.
fn default_path(checkout: &Checkout, record: &Record) -> Result<PathBuf> {
    let directory = checkout.output.join("bench");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("creating {}", directory.display()))?;
    // Colons in file names cause problems in several places.
    Ok(directory.join(format!("{}.json", record.date.replace(':', ""))))
}

/// A benchmark of the daemon's, without a guest.
fn on_host(checkout: &Checkout, name: &str, lines: &mut Lines) -> Result<()> {
    let mut child = checkout
        .cargo()
        .args(["bench", "--package", "vhost-device-hmm", "--bench", name])
        .args(["--", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .context("starting cargo")?;
    let mut output = child.stdout.take().context("the output is a pipe")?;
    let copied = std::io::copy(&mut output, lines);
    drop(output);
    let status = child.wait().context("waiting for the benchmark")?;
    copied.context("reading the benchmark's output")?;
    let good = status.success() || lines.has_failures();
    lines.close(good.then_some(()).ok_or_else(|| status.to_string()))
}

/// Jobs, faults and migrations, in one machine.
fn in_guest(artifacts: &Artifacts, kernel: &str, icount: bool, lines: &mut Lines) -> Result<()> {
    progress::announce(
        "measuring in a guest",
        if icount {
            "by its instructions; a few minutes"
        } else if artifacts.kvm {
            "with KVM; a few minutes"
        } else {
            "emulated, because KVM does not work here: slow, and only the ratios tell"
        },
    );
    let begun = Instant::now();
    let mut machine = Vm::builder(artifacts)
        .name("bench")
        .kernel(kernel)
        .devices(DEVICES)
        .memory(MEMORY)
        .device_memory(DEVICE_MEMORY);
    if icount {
        machine = machine.icount();
    }
    let vm = machine.start()?;
    let built = artifacts.kernels.get(kernel);
    let built = built.context("there is no such kernel")?;
    footprint::start(&vm, begun, built, lines)?;
    let before = lines.failures();
    let mut unreadable = None;
    let status = vm
        .spawn(Command::from(["hmm", "--json", "bench", "--second", "/dev/hmm1"]).unlimited())?
        .stream(|stream, bytes| match stream {
            Stream::Output => {
                if let Err(error) = lines.write_all(bytes) {
                    unreadable.get_or_insert(error);
                }
            }
            Stream::Error => output::errors(bytes),
        })?;
    footprint::idle(&vm, lines)?;
    let logs = vm.logs().directory().to_owned();
    vm.switch_off()?;
    if let Some(error) = unreadable {
        return Err(error).context("reading the guest's output");
    }
    let good = match status {
        Status::Exited(0) => true,
        // Its output says what could not be measured.
        Status::Exited(1) => lines.failures() > before,
        _ => false,
    };
    lines
        .close(good.then_some(()).ok_or_else(|| format!("{status:?}")))
        .with_context(|| format!("the guest's benchmark failed; logs: {}", logs.display()))
}

impl BenchArgs {
    fn has(&self, part: BenchPart) -> bool {
        self.only.is_none_or(|only| only == part) && (part.has_guest() || !self.icount)
    }
}

impl BenchPart {
    /// Whether it is measured in a virtual machine.
    fn has_guest(self) -> bool {
        matches!(self, Self::Guest | Self::Kernel)
    }
}

impl Lines {
    /// The end of a benchmark: an error if it died or printed nothing.
    fn close(&mut self, end: Result<(), String>) -> Result<()> {
        let whole = self.end();
        if let Err(how) = end {
            bail!("the benchmark ended with {how}");
        }
        whole
    }
}
