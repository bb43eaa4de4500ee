//! The record of a run: the results, the machine, the versions and the date.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{ensure, Context, Result};
use hmm_bench::{Failure, Measurement};
use hmm_vm::artifacts::Artifacts;
use hmm_vm::qemu::Accelerator;
use serde::{Deserialize, Serialize};

use super::lines::Lines;
use crate::setup::cargo::Checkout;

/// The version of the format. It changes with every change that an older reader would
/// misunderstand.
const FORMAT: u32 = 1;

/// A run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Record {
    /// The version of the format.
    pub(super) format: u32,
    /// When the run began, in UTC, as in RFC 3339.
    pub(super) date: String,
    /// The machine.
    pub(super) machine: Machine,
    /// The versions of what was measured, and of what built it.
    pub(super) versions: Versions,
    /// The results.
    pub(super) measurements: Vec<Measurement>,
    /// What could not be measured.
    pub(super) failures: Vec<Failure>,
}

/// The host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Machine {
    /// The processor's name.
    pub(super) processor: String,
    /// How many processors we may use.
    pub(super) processors: usize,
    /// Memory in bytes.
    pub(super) memory: u64,
    /// The kernel's release.
    pub(super) kernel: String,
    /// Processes that ran or were ready to run in the minute before: any of them disturb.
    pub(super) load: f64,
}

/// Versions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Versions {
    /// This project's.
    pub(super) project: String,
    /// The commit, with `-dirty` if something was changed; empty outside a clone.
    pub(super) commit: String,
    /// The host's compiler.
    pub(super) rustc: String,
    /// The guest, if the run had one.
    pub(super) guest: Option<Guest>,
}

/// A guest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Guest {
    /// Its kernel's release.
    pub(super) kernel: String,
    /// The QEMU that it ran on.
    pub(super) qemu: String,
    /// `kvm`, `tcg` when it was emulated, or `icount` when its clock counted instructions.
    pub(super) accelerator: String,
}

impl Record {
    /// A record of a run that begins now.
    pub(super) fn begin(checkout: &Checkout) -> Result<Self> {
        let mut date = Command::new("date");
        date.args(["--utc", "+%Y-%m-%dT%H:%M:%SZ"]);
        Ok(Self {
            format: FORMAT,
            date: first_line(&mut date)?,
            machine: Machine::this()?,
            versions: Versions::of(checkout)?,
            measurements: Vec::new(),
            failures: Vec::new(),
        })
    }

    /// Adds the results.
    pub(super) fn take(&mut self, lines: Lines) {
        (self.measurements, self.failures) = lines.into_results();
    }

    /// Reads an earlier run.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let what = || format!("{} is no record of a benchmark", path.display());
        let any: serde_json::Value = serde_json::from_slice(&text).with_context(what)?;
        ensure!(
            any["format"] == FORMAT,
            "{} has the form {}; this program reads form {FORMAT}",
            path.display(),
            any["format"]
        );
        serde_json::from_value(any).with_context(what)
    }

    /// Writes it, whole or not at all.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        let partial = path.with_extension("partial");
        fs::write(&partial, text).with_context(|| format!("writing {}", partial.display()))?;
        fs::rename(&partial, path).with_context(|| format!("writing {}", path.display()))
    }
}

impl Machine {
    fn this() -> Result<Self> {
        let read = |path| fs::read_to_string(path).with_context(|| format!("reading {path}"));
        let field = |text: &str, name| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(line.trim_start_matches([' ', '\t', ':']).to_owned())
        };
        let kibibytes = field(&read("/proc/meminfo")?, "MemTotal");
        let kibibytes: Option<u64> =
            kibibytes.and_then(|text| text.split_ascii_whitespace().next()?.parse().ok());
        let load = read("/proc/loadavg")?;
        let load = load
            .split_ascii_whitespace()
            .next()
            .and_then(|text| text.parse().ok());
        Ok(Self {
            processor: field(&read("/proc/cpuinfo")?, "model name").unwrap_or_default(),
            processors: std::thread::available_parallelism()?.get(),
            memory: kibibytes.context("/proc/meminfo has no MemTotal")? << 10,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().to_owned(),
            load: load.context("/proc/loadavg has no load")?,
        })
    }
}

impl Versions {
    fn of(checkout: &Checkout) -> Result<Self> {
        let mut git = Command::new("git");
        git.current_dir(&checkout.root)
            .args(["describe", "--always", "--dirty", "--abbrev=12"]);
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.current_dir(&checkout.root).arg("--version");
        Ok(Self {
            project: env!("CARGO_PKG_VERSION").to_owned(),
            // Sources without a history have no commit.
            commit: first_line(&mut git).unwrap_or_default(),
            rustc: first_line(&mut rustc)?,
            guest: None,
        })
    }
}

impl Guest {
    /// The guest that these artifacts make.
    pub(super) fn of(artifacts: &Artifacts, kernel: &str, icount: bool) -> Result<Self> {
        let (program, arguments) = artifacts.qemu.split_first().context("there is no QEMU")?;
        let mut qemu = Command::new(program);
        qemu.args(arguments).arg("--version");
        let kernel = artifacts
            .kernels
            .get(kernel)
            .context("there is no such kernel")?;
        Ok(Self {
            kernel: kernel.release.clone(),
            qemu: first_line(&mut qemu)?,
            accelerator: Accelerator::new(artifacts.kvm, icount).name().to_owned(),
        })
    }
}

/// The first line of a command's output. The command must succeed.
fn first_line(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("starting {name}"))?;
    ensure!(output.status.success(), "{name} failed: {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::bench) fn record() -> Record {
        Record {
            format: FORMAT,
            date: "2026-01-02T03:04:05Z".into(),
            machine: Machine {
                processor: "one".into(),
                processors: 2,
                memory: 1 << 30,
                kernel: "7".into(),
                load: 0.5,
            },
            versions: Versions {
                project: "0.1.0".into(),
                commit: String::new(),
                rustc: "rustc".into(),
                guest: None,
            },
            measurements: Vec::new(),
            failures: Vec::new(),
        }
    }

    #[test]
    fn a_record_comes_back_as_it_was_written() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        record().write(&path).unwrap();
        assert_eq!(Record::read(&path).unwrap(), record());
    }

    #[test]
    fn another_form_is_refused_by_its_number() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("record.json");
        fs::write(&path, "{\"format\": 2}").unwrap();
        let error = Record::read(&path).unwrap_err().to_string();
        assert!(error.contains("form 2"), "{error}");
    }

    #[test]
    fn this_machine_can_be_described() {
        let machine = Machine::this().unwrap();
        assert!(machine.processors > 0 && machine.memory > 1 << 20);
        assert!(!machine.kernel.is_empty());
    }
}
