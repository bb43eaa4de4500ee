//! Workloads: real input, made here, worked on by the device, checked by the CPU.
//!
//! This file runs them and keeps the accounts; what each one does is its own file.

mod arrays;
mod bad_input;
mod churn;
mod graph;
mod in_place;
mod matrix;
mod migration;
mod peers;
mod pointers;
pub(crate) mod processes;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use hmm::work::Work;
use hmm::{Counters, Device, Outcome, Space, Usage};

use crate::args::{Choice, Run};
use crate::report::Report;

/// Mistakes that a report tells; the rest is counted.
const MAX_MISTAKES: usize = 5;

/// A workload: its name, what its size counts, and what to run.
struct Workload {
    choice: Choice,
    name: &'static str,
    unit: &'static str,
    default_size: usize,
    run: fn(&mut Trial<'_>) -> Result<()>,
}

macro_rules! workloads {
    ($( $choice:ident $name:literal, $size:expr, $unit:literal, $run:path; )+) => {
        /// All workloads, in the order in which `all` runs them.
        const WORKLOADS: &[Workload] = &[ $( Workload {
            choice: Choice::$choice,
            name: $name,
            unit: $unit,
            default_size: $size,
            run: $run,
        }, )+ ];
    };
}

workloads! {
    List "list", 200_000, "nodes", pointers::list;
    Tree "tree", 200_000, "nodes", pointers::tree;
    Gemm "gemm", 512, "rows", matrix::gemm;
    Axpy "axpy", 16 << 20, "floats", arrays::axpy;
    Dot "dot", 16 << 20, "floats", arrays::dot;
    Sort "sort", 4 << 20, "integers", arrays::sort;
    Histogram "histogram", 0, "bytes", arrays::histogram;
    Bfs "bfs", 1_000_000, "edges", graph::bfs;
    Migrate "migrate", 256 << 20, "bytes", migration::migrate;
    Oversubscribe "oversubscribe", 0, "bytes", migration::oversubscribe;
    Peers "peers", 16 << 20, "bytes", peers::run;
    Processes "processes", 3, "processes", processes::run;
    Churn "churn", 60, "rounds", churn::run;
    BadInput "bad-input", 0, "cases", bad_input::run;
}

/// Runs what was asked for: whether every answer was right.
///
/// # Errors
///
/// When the device cannot even be opened.
pub(crate) fn run(device: &Path, run: &Run, json: bool) -> Result<bool> {
    // Opened once beforehand, so that a missing device is said once.
    Device::open(device)?;
    let chosen = WORKLOADS
        .iter()
        .filter(|workload| run.workload == Choice::All || workload.choice == run.workload);
    let mut all_right = true;
    for workload in chosen {
        let report = attempt(workload, device, run);
        report.print(json);
        all_right &= report.right;
    }
    Ok(all_right)
}

/// Runs one workload. Whatever keeps it from its end makes the report wrong.
fn attempt(workload: &Workload, device: &Path, run: &Run) -> Report {
    let seed = run.seed.unwrap_or_else(|| fastrand::u64(..));
    let mut report = Report {
        workload: workload.name,
        size: run.size.unwrap_or(workload.default_size),
        unit: workload.unit,
        right: false,
        mistakes: Vec::new(),
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
        let mut trial = Trial {
            space: &space,
            path: device,
            file: run.file.as_deref(),
            random: fastrand::Rng::with_seed(seed),
            mistakes_left_out: 0,
            report: &mut report,
        };
        let outcome = (workload.run)(&mut trial);
        trial.finish(&before)?;
        outcome
    });
    if let Err(error) = outcome {
        report.mistakes.push(format!("{error:#}"));
    }
    report.right = report.mistakes.is_empty();
    report
}

/// One run of a workload: what it uses, and what becomes of it.
struct Trial<'a> {
    /// This process on the device.
    space: &'a Space,
    path: &'a Path,
    file: Option<&'a Path>,
    /// The source of all that is chosen at random.
    random: fastrand::Rng,
    mistakes_left_out: usize,
    report: &'a mut Report,
}

impl Trial<'_> {
    /// The size that was asked for, or the default.
    fn size(&self) -> usize {
        self.report.size
    }

    /// Runs a job on the device and adds its time to the device's.
    fn on_device<T>(&mut self, work: Work<'_, T>) -> Result<T> {
        Ok(self.observed(work)?.0)
    }

    /// As [`Trial::on_device`], with what the job used.
    fn observed<T>(&mut self, work: Work<'_, T>) -> Result<(T, Usage)> {
        let start = Instant::now();
        let Outcome { value, usage } = self.space.run(work)?;
        self.add_device_time(start.elapsed());
        Ok((value, usage))
    }

    fn add_device_time(&mut self, time: Duration) {
        *self.report.device.get_or_insert_default() += time;
    }

    /// Does the same on the CPU and adds its time to the CPU's.
    fn on_cpu<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        // What is computed only to be compared is computed all the same.
        let value = std::hint::black_box(work());
        *self.report.cpu.get_or_insert_default() += start.elapsed();
        value
    }

    /// Notes a mistake unless `right`.
    fn check(&mut self, right: bool, mistake: impl FnOnce() -> String) {
        if !right {
            if self.report.mistakes.len() < MAX_MISTAKES {
                self.report.mistakes.push(mistake());
            } else {
                self.mistakes_left_out += 1;
            }
        }
    }

    /// Notes a mistake unless both are equal.
    fn check_equal<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, device: T, cpu: T) {
        let right = device == cpu;
        self.check(right, || {
            format!("{what}: {device:?} where {cpu:?} is right")
        });
    }

    /// Closes the accounts.
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
        let out = |counters: &Counters| counters.driver.pages_to_device;
        let home = |counters: &Counters| {
            let driver = &counters.driver;
            driver.pages_to_system + driver.pages_touched + driver.pages_evicted
        };
        self.report.pages_to_device = out(&after).wrapping_sub(out(before));
        self.report.pages_to_system = home(&after).wrapping_sub(home(before));
        // With the device in checking mode these may never grow; without, they are zero.
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

/// The file that a workload is to read: the one that was named, or the kernel's image, or
/// this program.
fn readable_file(named: Option<&Path>) -> PathBuf {
    if let Some(path) = named {
        return path.to_owned();
    }
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let candidates = [
        PathBuf::from("/root/vmlinuz"),
        PathBuf::from(format!("/boot/vmlinuz-{release}")),
        PathBuf::from("/vmlinuz"),
    ];
    let readable = |path: &PathBuf| std::fs::File::open(path).is_ok();
    candidates
        .into_iter()
        .find(readable)
        .unwrap_or_else(|| "/proc/self/exe".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn every_choice_is_a_workload_under_the_name_that_the_command_line_has() {
        for choice in Choice::value_variants() {
            let named: Vec<_> = WORKLOADS
                .iter()
                .filter(|w| w.choice == *choice)
                .map(|w| w.name)
                .collect();
            if *choice == Choice::All {
                assert!(named.is_empty());
            } else {
                let value = choice.to_possible_value().unwrap();
                assert_eq!(named, [value.get_name()]);
            }
        }
    }

    #[test]
    fn there_is_always_a_file_to_read() {
        assert!(std::fs::File::open(readable_file(None)).is_ok());
        assert_eq!(readable_file(Some(Path::new("/x"))), Path::new("/x"));
    }
}
