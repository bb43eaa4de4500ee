//! The daemon behind one device.
//!
//! It starts and stops `vhost-device-hmm` and keeps what it prints. It knows the
//! daemon's command line and nothing of virtio.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;

use anyhow::{bail, Context, Result};
use rustix::process::Signal;

use crate::logs::tail;
use crate::pace::{Pace, DAEMON_START, DAEMON_STOP};
use crate::process::{Process, Terminal};

/// What the daemon says, somewhere in a line, once a connection will be accepted.
const LISTENING: &str = "listening";

/// What in the daemon's log fails a test: our errors, never the guest's mistakes.
const COMPLAINTS: [&str; 4] = ["ERROR", "panicked at", "stale", "freed frame"];

/// How to run a daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The size of the device's memory in bytes.
    pub memory: u64,
    /// The number of engines; the daemon's own choice by default.
    pub engines: Option<u32>,
    /// Whether it looks for uses of stale translations and freed frames.
    pub check: bool,
    /// What it logs: a level of the `log` crate.
    pub log: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            memory: 256 << 20,
            engines: None,
            check: false,
            log: "info".to_owned(),
        }
    }
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    process: Process,
    log: PathBuf,
    pace: Pace,
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
            .args(["--log", &settings.log])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if let Some(engines) = settings.engines {
            command.args(["--engines", &engines.to_string()]);
        }
        if settings.check {
            command.arg("--check");
        }
        // A socket pair, not a pipe that the standard library makes: it works
        // although another thread starts the process.
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        command.stderr(std::os::fd::OwnedFd::from(theirs));
        let file = File::create(log).with_context(|| format!("creating {}", log.display()))?;
        let (listening, heard) = mpsc::channel();
        thread::Builder::new()
            .name("daemon-log".into())
            .spawn(move || keep(ours, file, &listening))?;
        let daemon = Self {
            process: Process::start(command, Terminal::Apart)?,
            log: log.to_owned(),
            pace,
        };
        match heard.recv_timeout(pace.scale(DAEMON_START)) {
            Ok(()) => Ok(daemon),
            Err(RecvTimeoutError::Disconnected) => bail!(
                "the daemon ended before it listened; it printed\n{}",
                tail(log)
            ),
            Err(RecvTimeoutError::Timeout) => bail!(
                "the daemon did not listen within {:?}; it printed\n{}",
                pace.scale(DAEMON_START),
                tail(log)
            ),
        }
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<ExitStatus> {
        self.process.ended()
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

    /// Asks it to end, and waits until it has.
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

    /// The lines of its log that speak of an error of its own.
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

/// Keeps what a daemon prints and tells when it listens.
fn keep(from: impl std::io::Read, mut log: File, listening: &Sender<()>) {
    let mut lines = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        // Losing the log is no reason to stop reading: the daemon would block.
        let _ = log.write_all(&line);
        if String::from_utf8_lossy(&line).contains(LISTENING) {
            // Heard once; later lines find nobody waiting.
            let _ = listening.send(());
        }
    }
}
