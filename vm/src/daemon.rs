//! The daemon behind one device.
//!
//! It starts and stops `vhost-device-hmm` and keeps its output. It knows the daemon's command line
//! and nothing of virtio.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, Context, Result};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use rustix::process::Signal;

use crate::control::Control;
use crate::logs::tail;
use crate::pace::{Pace, DAEMON_START, DAEMON_STOP};
use crate::process::{Process, Terminal};

/// The daemon prints this within a line when it accepts connections.
const LISTENING: &str = "listening";

/// These words in the daemon's log fail a test. At this level the daemon logs its own errors and
/// what its checks find, but no mistake of the guest's.
const COMPLAINTS: [&str; 2] = ["ERROR", "panicked at"];

/// How to run a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The size of the device's memory in bytes.
    pub memory: u64,
    /// The number of engines; the daemon's own choice by default.
    pub engines: Option<u32>,
    /// Whether the guest's CPUs can address the device's memory.
    pub coherent: bool,
    /// Whether it looks for uses of stale translations and freed frames.
    pub check: bool,
    /// What is late and what fails on purpose, as the daemon's `--rule` takes it.
    pub rules: Vec<String>,
    /// What it says of itself and is not so, as its `--misreport` takes it.
    pub misreports: Vec<String>,
    /// The memory for page tables, in bytes; the daemon's own choice by default.
    pub table_memory: Option<u64>,
    /// What it logs: a level of the `log` crate.
    pub log: String,
    /// Where it writes a trace.
    pub trace: Option<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            memory: 256 << 20,
            engines: None,
            coherent: false,
            check: false,
            rules: Vec::new(),
            misreports: Vec::new(),
            table_memory: None,
            log: "info".to_owned(),
            trace: None,
        }
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    log: PathBuf,
    control: Control,
    pace: Pace,
}

/// The control socket of the daemon that listens on `socket`.
fn control_socket(socket: &Path) -> PathBuf {
    socket.with_extension("control")
}

impl Daemon {
    /// Starts a daemon and waits until it listens on `socket`.
    ///
    /// # Errors
    ///
    /// When it cannot be started, ends at once or does not listen in time.
    pub fn start(
        program: &Path,
        socket: &Path,
        settings: &Settings,
        log: &Path,
        pace: Pace,
    ) -> Result<Self> {
        let mut command = Command::new(program);
        command
            .arg("--socket-path")
            .arg(socket)
            .args(["--memory", &settings.memory.to_string()])
            .args(["--log-level", &settings.log])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if let Some(engines) = settings.engines {
            command.args(["--engines", &engines.to_string()]);
        }
        if let Some(bytes) = settings.table_memory {
            command.args(["--table-memory", &bytes.to_string()]);
        }
        if settings.coherent {
            command.arg("--coherent");
        }
        if settings.check {
            command.arg("--check");
        }
        for rule in &settings.rules {
            command.args(["--rule", rule]);
        }
        for field in &settings.misreports {
            command.args(["--misreport", field]);
        }
        if let Some(trace) = &settings.trace {
            command.arg("--trace").arg(trace);
        }
        command.arg("--control").arg(control_socket(socket));
        // Straight into the file, so that it has all that the daemon printed before it ended.
        let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        command.stderr(file);
        let changes = Changes::of(log).with_context(|| format!("watching {}", log.display()))?;
        let daemon = Self {
            process: Process::start(command, Terminal::Apart)?,
            log: log.to_owned(),
            control: Control::new(control_socket(socket), pace),
            pace,
        };
        daemon.wait_until_it_listens(&changes)?;
        Ok(daemon)
    }

    fn wait_until_it_listens(&self, changes: &Changes) -> Result<()> {
        let limit = self.pace.scale(DAEMON_START);
        let deadline = Instant::now() + limit;
        loop {
            // The end is looked at before the log: the log is complete then.
            let ended = self.process.ended();
            if self.log()?.contains(LISTENING) {
                return Ok(());
            }
            if let Some(status) = ended {
                bail!(
                    "the daemon ended before it listened: {status}; it printed\n{}",
                    tail(&self.log)
                );
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!(
                    "the daemon did not listen within {limit:?}; it printed\n{}",
                    tail(&self.log)
                );
            }
            changes.wait(&self.process, left)?;
        }
    }

    /// Its process id; another process may have it after its end.
    #[must_use]
    pub fn id(&self) -> i32 {
        self.process.id()
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// Its control socket.
    #[must_use]
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Where its log is.
    #[must_use]
    pub fn log_path(&self) -> &Path {
        &self.log
    }

    /// What it has printed so far.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    pub fn log(&self) -> Result<String> {
        let bytes =
            fs::read(&self.log).with_context(|| format!("reading {}", self.log.display()))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Kills it, as a crash would.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Asks the daemon to end, and waits until it has.
    ///
    /// # Errors
    ///
    /// When it had ended before, does not end in time, or fails.
    pub fn stop(&self) -> Result<()> {
        if let Some(status) = self.process.ended() {
            bail!("the daemon had ended before it was asked to: {status}");
        }
        self.process.signal(Signal::TERM);
        let limit = self.pace.scale(DAEMON_STOP);
        match self.process.wait(limit) {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("the daemon failed when it was asked to end: {status}"),
            None => bail!("the daemon did not end within {limit:?} of SIGTERM"),
        }
    }

    /// The lines of its log that report an error of its own.
    ///
    /// # Errors
    ///
    /// When the log cannot be read.
    pub fn complaints(&self) -> Result<Vec<String>> {
        Ok(self
            .log()?
            .lines()
            .filter(|line| COMPLAINTS.iter().any(|word| line.contains(word)))
            .map(str::to_owned)
            .collect())
    }
}

/// Watches a file for changes.
#[derive(Debug)]
struct Changes(OwnedFd);

impl Changes {
    fn of(file: &Path) -> Result<Self> {
        let changes = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        inotify::add_watch(&changes, file, WatchFlags::MODIFY)?;
        Ok(Self(changes))
    }

    /// Waits until the file has changed since the last wait, `process` has ended, or
    /// `limit` has passed.
    fn wait(&self, process: &Process, limit: Duration) -> Result<()> {
        let mut sources = [
            PollFd::new(&self.0, PollFlags::IN),
            PollFd::new(process, PollFlags::IN),
        ];
        match poll(&mut sources, Some(&Timespec::try_from(limit)?)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        if !sources[1].revents().is_empty() {
            // The caller then asks how the process ended.
            let _ = process.wait(limit);
        }
        match rustix::io::read(&self.0, &mut [0; 4096]) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
