//! A run of a workload: its resources, its options, and its report.
//!
//! It does not know what a workload does.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use hmm::work::Work;
use hmm::{Counters, Destination, Device, Migration, Outcome, PageRange, Space, Usage};
use hmm_cli::say;

use crate::argument::WrongArgument;
use crate::report::Report;

/// How many mistakes a report describes; the others are counted.
pub const MAX_MISTAKES: usize = 5;

/// How often pages that could not move at first are asked to move again: the kernel may hold one
/// for a moment.
const ATTEMPTS: usize = 3;

/// A workload.
pub struct Workload {
    /// Its name on the command line and in a report.
    pub name: &'static str,
    /// Its size, unless another one is asked for.
    pub default_size: usize,
    /// What its size counts.
    pub unit: &'static str,
    /// What it does. An error, such as of a call that failed, is reported as such and not as a
    /// wrong answer; [`WrongArgument`] ends the whole run.
    pub run: fn(&mut WorkloadCtx<'_>) -> Result<()>,
}

/// The options of a run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The size, in the workload's unit.
    pub size: Option<usize>,
    /// The seed of all that is chosen at random.
    pub seed: Option<u64>,
    /// A file to read, for a workload that reads one.
    pub file: Option<PathBuf>,
}

/// Runs workloads and prints a report of each. Returns whether every answer was right.
///
/// # Errors
///
/// When the device cannot be opened. [`WrongArgument`] when a workload cannot have that size on this
/// device.
pub fn run<'w>(
    workloads: impl IntoIterator<Item = &'w Workload>,
    device: &Path,
    options: &Options,
    json: bool,
) -> Result<bool> {
    // Opened once beforehand, so that a missing device is reported once.
    Device::open(device)?;
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
    let mut all_right = true;
    let mut header = (!json).then(Report::header);
    for workload in workloads {
        let report = attempt(workload, device, options, seed)?;
        if let Some(header) = header.take() {
            say!("{header}");
        }
        report.print(json);
        all_right &= report.right;
    }
    if !json {
        say!("seed {seed}");
    }
    Ok(all_right)
}

/// Runs one workload. An error that stops it is part of the report, unless it is the user's.
fn attempt(workload: &Workload, device: &Path, options: &Options, seed: u64) -> Result<Report> {
    let mut report = Report {
        workload: workload.name.into(),
        size: options.size.unwrap_or(workload.default_size),
        unit: workload.unit.into(),
        right: false,
        mistakes: Vec::new(),
        failure: None,
        faults: 0,
        pages_to_device: 0,
        pages_to_system: 0,
        device: None,
        cpu: None,
        seed,
        note: String::new(),
    };
    let bound = || -> Result<_> {
        let space = Device::open(device)?.bind()?;
        let before = space.device().counters()?;
        Ok((space, before))
    };
    let outcome = bound().and_then(|(space, before)| {
        let mut ctx = WorkloadCtx {
            space: &space,
            path: device,
            file: options.file.as_deref(),
            random: fastrand::Rng::with_seed(seed),
            mistakes_left_out: 0,
            report: &mut report,
        };
        let outcome = (workload.run)(&mut ctx);
        ctx.finish(&before)?;
        outcome
    });
    match outcome {
        Err(error) if error.is::<WrongArgument>() => return Err(error),
        outcome => report.failure = outcome.err().map(|error| format!("{error:#}")),
    }
    report.right = report.mistakes.is_empty() && report.failure.is_none();
    Ok(report)
}

/// One run of a workload: its resources and its report.
pub struct WorkloadCtx<'a> {
    /// This process on the device.
    pub space: &'a Space,
    /// The device.
    pub path: &'a Path,
    /// The file that was named, if there was one.
    pub file: Option<&'a Path>,
    /// The source of all that is chosen at random.
    pub random: fastrand::Rng,
    mistakes_left_out: usize,
    /// The results.
    pub report: &'a mut Report,
}

impl WorkloadCtx<'_> {
    /// The size that was asked for, or the default.
    #[must_use]
    pub fn size(&self) -> usize {
        self.report.size
    }

    /// Runs a job on the device and adds its time to the device's.
    ///
    /// # Errors
    ///
    /// When the job does not succeed.
    pub fn on_device<T>(&mut self, work: Work<'_, T>) -> Result<T> {
        Ok(self.observed(work)?.0)
    }

    /// As [`WorkloadCtx::on_device`], and also returns what the job used.
    ///
    /// # Errors
    ///
    /// When the job does not succeed.
    pub fn observed<T>(&mut self, work: Work<'_, T>) -> Result<(T, Usage)> {
        let start = Instant::now();
        let Outcome { value, usage } = self.space.run(work)?;
        self.add_device_time(start.elapsed());
        Ok((value, usage))
    }

    /// Adds to the device's time.
    pub fn add_device_time(&mut self, time: Duration) {
        *self.report.device.get_or_insert_default() += time;
    }

    /// Does the work on the CPU and adds its time to the CPU's.
    pub fn on_cpu<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        // The compiler must not remove a computation whose result is only compared.
        let value = std::hint::black_box(work());
        *self.report.cpu.get_or_insert_default() += start.elapsed();
        value
    }

    /// Notes a mistake unless `right`.
    pub fn check(&mut self, right: bool, mistake: impl FnOnce() -> String) {
        if !right {
            if self.report.mistakes.len() < MAX_MISTAKES {
                self.report.mistakes.push(mistake());
            } else {
                self.mistakes_left_out += 1;
            }
        }
    }

    /// Notes a mistake unless both are equal.
    pub fn check_equal<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, device: T, cpu: T) {
        let right = device == cpu;
        self.check(right, || {
            format!("{what}: {device:?} where {cpu:?} is right")
        });
    }

    /// Moves all pages that can be moved. Returns the sum of all attempts.
    ///
    /// # Errors
    ///
    /// When the driver refuses to move any.
    pub fn move_all(&mut self, range: PageRange, to: Destination) -> Result<Migration> {
        let mut all = Migration::default();
        let pages = range.pages() as u64;
        for _ in 0..ATTEMPTS {
            let moved = self.space.migrate(range, to)?;
            self.check_equal("pages accounted for", moved.moved + moved.skipped, pages);
            all = Migration {
                moved: all.moved + moved.moved,
                ..moved
            };
            if all.moved == pages || moved.no_memory > 0 {
                break;
            }
        }
        Ok(all)
    }

    /// Completes the report.
    fn finish(&mut self, before: &Counters) -> Result<()> {
        if self.mistakes_left_out > 0 {
            let more = format!("and {} mistakes more", self.mistakes_left_out);
            self.report.mistakes.push(more);
        }
        let after = self.space.device().counters()?;
        self.report.faults = after
            .device
            .faults
            .get()
            .wrapping_sub(before.device.faults.get());
        let to_device = |counters: &Counters| counters.driver.pages_to_device;
        let to_system = |counters: &Counters| {
            let driver = &counters.driver;
            driver.pages_to_system + driver.cpu_fault_pages + driver.pages_evicted
        };
        self.report.pages_to_device = to_device(&after).wrapping_sub(to_device(before));
        self.report.pages_to_system = to_system(&after).wrapping_sub(to_system(before));
        // In the device's checking mode these counters must not grow; otherwise they are zero.
        let misuse = |counters: &Counters| {
            (
                counters.device.stale_accesses.get(),
                counters.device.freed_frame_uses.get(),
            )
        };
        self.check_equal(
            "stale accesses and freed frames used",
            misuse(&after),
            misuse(before),
        );
        Ok(())
    }
}
