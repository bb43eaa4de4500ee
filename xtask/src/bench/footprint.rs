//! Sizes, and the times to build and to start.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hmm_bench::{own_mebibytes, processor_share, Better, Line, Measurement, Spread, Unit};
use hmm_vm::artifacts::Kernel;
use hmm_vm::vm::{Vm, DRIVER_NAME};

use super::lines::Lines;
use crate::args::KernelChoice;
use crate::setup::cargo::Checkout;
use crate::setup::driver;
use crate::setup::prepare::Foundation;

/// How long the daemon is watched while its guest does nothing.
const IDLE: Duration = Duration::from_secs(2);

/// The smallest possible work, by a program that every user has.
const FIRST_JOB: [&str; 5] = ["hmm", "run", "list", "--size", "1000"];

/// Measures the time from `begun`, when the machine was to be started, to the end of its first job;
/// then the size of the driver.
pub(super) fn start(vm: &Vm, begun: Instant, kernel: &Kernel, lines: &mut Lines) -> Result<()> {
    let loaded = begun.elapsed();
    vm.run(FIRST_JOB)?.succeeded().context("the first job")?;
    let ended = begun.elapsed();
    let group = "start";
    for (name, time) in [
        ("from nothing to a guest with the driver loaded", loaded),
        ("from nothing to the end of the first job", ended),
    ] {
        lines.add(once(group, name, Unit::Milliseconds, milliseconds(time)));
    }
    let file = fs::metadata(&kernel.driver).context("looking at the driver")?;
    let size = vm
        .guest()
        .read_file(&format!("/sys/module/{DRIVER_NAME}/coresize"))?;
    let size = String::from_utf8_lossy(&size);
    let size: f64 = size.trim().parse().context("the size of the module")?;
    // A few hundred kilobytes.
    #[allow(clippy::cast_precision_loss)]
    let file = file.len() as f64;
    for (name, bytes) in [("the driver's file", file), ("the driver, loaded", size)] {
        let mebibytes = bytes / f64::from(1 << 20);
        lines.add(once("size", name, Unit::Mebibytes, mebibytes));
    }
    Ok(())
}

/// The daemon's processor time and memory while its guest does nothing.
pub(super) fn idle(vm: &Vm, lines: &mut Lines) -> Result<()> {
    let daemon = u32::try_from(vm.daemon(0).id()).context("a process id is positive")?;
    let group = "idle daemon";
    let share = processor_share(daemon, IDLE).context("watching the daemon")?;
    let name = "processor time, with an idle guest";
    lines.add(once(group, name, Unit::Percent, share));
    // Without the guest's memory, which QEMU shares, and device memory, which is returned when
    // pages move to system memory.
    let own = own_mebibytes(daemon).context("looking at the daemon")?;
    let name = "own memory, with a guest that has used it";
    lines.add(once(group, name, Unit::Mebibytes, own));
    Ok(())
}

/// Builds the daemon and the driver from nothing, beside the existing builds.
pub(super) fn builds(checkout: &Checkout, kernel: &KernelChoice, lines: &mut Lines) -> Result<()> {
    let foundation = Foundation::prepare(checkout, std::slice::from_ref(kernel))?;
    let directory = tempfile::tempdir().context("creating a directory")?;
    let begun = Instant::now();
    let status = checkout
        .cargo()
        .args([
            "build",
            "--quiet",
            "--release",
            "--package",
            "vhost-device-hmm",
        ])
        .arg("--target-dir")
        .arg(directory.path())
        .status()
        .context("starting cargo")?;
    anyhow::ensure!(status.success(), "the daemon does not build: {status}");
    let time = milliseconds(begun.elapsed());
    let group = "builds from nothing";
    let name = "the daemon, with its dependencies";
    lines.add(once(group, name, Unit::Milliseconds, time));
    for kernel in &foundation.kernels {
        let begun = Instant::now();
        driver::build_anew(&foundation.toolbox, kernel, checkout)?;
        let time = milliseconds(begun.elapsed());
        lines.add(once(group, "the driver", Unit::Milliseconds, time));
    }
    lines.end()
}

/// A single value without repetitions.
fn once(group: &str, name: &str, unit: Unit, value: f64) -> Line {
    Line::Measurement(Measurement {
        group: group.into(),
        name: name.into(),
        unit,
        better: Better::Lower,
        repetitions: 1,
        value: Spread::exact(value),
        reference: None,
    })
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
