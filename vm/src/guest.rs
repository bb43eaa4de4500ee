//! The guest as seen through its agent: programs, files, modules, the kernel log.
//!
//! It speaks the agent's protocol over a connection that the caller made, and does not know how the
//! machine runs.

mod command;
mod connection;
mod error;
mod running;

use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context;
use hmm_agent::protocol::{self, Answer, Call, Request, LOG_MARK};
pub use hmm_agent::protocol::{Recipient, Record, Stream, Terminal};

pub use self::command::{Command, Output, Status};
use self::connection::Arrivals;
pub use self::error::{Error, Result};
pub use self::running::Running;
use crate::klog::{judge_console, Complaint};
use crate::logs::{tail, Logs};
use crate::pace::{Pace, ANSWER, BOOT};

/// What the guest does until its agent greets.
pub(crate) const BOOTING: &str = "the kernel boots";

/// The guest.
#[derive(Debug)]
pub struct Guest {
    to_agent: Mutex<UnixStream>,
    arrivals: Arc<Arrivals>,
    next: AtomicU32,
    logs: Logs,
    pace: Pace,
    release: String,
}

impl Guest {
    /// Waits for the agent's greeting.
    ///
    /// # Errors
    ///
    /// When it does not come in time, or the guest ends.
    pub fn greet(connection: UnixStream, logs: &Logs, pace: Pace) -> anyhow::Result<Self> {
        let from_agent = connection.try_clone().context("sharing the connection")?;
        // A guest that no longer reads must not block us for ever.
        connection.set_write_timeout(Some(pace.scale(ANSWER)))?;
        let log = File::create(logs.kernel()).context("creating the kernel's log")?;
        let arrivals = Arc::new(Arrivals::new(log));
        let (greeted, greeting) = mpsc::channel();
        let reader = Arc::clone(&arrivals);
        thread::Builder::new()
            .name("guest".into())
            .spawn(move || reader.read(from_agent, &greeted))?;
        let doing = || BOOTING.to_owned();
        let release = match greeting.recv_timeout(pace.scale(BOOT)) {
            Ok(release) => release,
            Err(RecvTimeoutError::Disconnected) => Err(Error::Gone {
                doing: doing(),
                why: arrivals.why_gone(),
                console: last_words(logs),
                logs: logs.directory().to_owned(),
            })?,
            Err(RecvTimeoutError::Timeout) => Err(Error::TimedOut {
                doing: doing(),
                limit: pace.scale(BOOT),
                seen: format!("; its console shows last\n{}\n", last_lines(logs)),
                logs: logs.directory().to_owned(),
            })?,
        };
        Ok(Self {
            to_agent: Mutex::new(connection),
            arrivals,
            next: AtomicU32::new(0),
            logs: logs.clone(),
            pace,
            release,
        })
    }

    /// The kernel's release.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    ///
    /// When it cannot be started or does not end. A program that fails is no error.
    pub fn run(&self, command: impl Into<Command>) -> Result<Output> {
        self.spawn(command)?.wait()
    }

    /// Starts a program.
    ///
    /// # Errors
    ///
    /// When the guest is gone. [`Running::wait`] reports a program that cannot be started.
    pub fn spawn(&self, command: impl Into<Command>) -> Result<Running<'_>> {
        let command = command.into();
        let doing = format!("running {}", command.program.arguments.join(" "));
        let limit = command.limit.map(|limit| self.pace.scale(limit));
        self.begin(doing, limit, Request::Run(command.program))
    }

    /// Starts a shell on the console.
    ///
    /// # Errors
    ///
    /// When the guest is gone.
    pub fn shell(&self, terminal: Terminal) -> Result<Running<'_>> {
        self.begin("running a shell".into(), None, Request::Shell(terminal))
    }

    /// Loads a module of the guest.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with the kernel's error number.
    pub fn load_module(&self, path: &str, parameters: &str, limit: Duration) -> Result<()> {
        let request = Request::LoadModule {
            path: path.into(),
            parameters: parameters.into(),
        };
        self.call(format!("loading {path}"), request, limit)?;
        Ok(())
    }

    /// Unloads a module.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with the kernel's error number.
    pub fn unload_module(&self, name: &str, limit: Duration) -> Result<()> {
        let request = Request::UnloadModule { name: name.into() };
        self.call(format!("unloading {name}"), request, limit)?;
        Ok(())
    }

    /// Reads a small file.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when it cannot be read.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        let request = Request::ReadFile { path: path.into() };
        match self.call(format!("reading {path}"), request, ANSWER)? {
            Answer::Contents(contents) => Ok(contents),
            Answer::Done => Ok(Vec::new()),
        }
    }

    /// Writes a small file, in one `write` and after truncating it.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when it cannot be written.
    pub fn write_file(&self, path: &str, contents: impl Into<Vec<u8>>) -> Result<()> {
        let request = Request::WriteFile {
            path: path.into(),
            contents: contents.into(),
        };
        self.call(format!("writing {path}"), request, ANSWER)?;
        Ok(())
    }

    /// Lets the system sleep in a state that `/sys/power/state` accepts, and returns when it is
    /// awake.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with the kernel's error number.
    pub fn sleep(&self, state: &str, limit: Duration) -> Result<()> {
        let request = Request::Sleep {
            state: state.into(),
        };
        self.call(format!("sleeping ({state})"), request, limit)?;
        Ok(())
    }

    /// The kernel log up to now.
    ///
    /// # Errors
    ///
    /// When the guest is gone.
    pub fn kernel_log(&self) -> Result<Vec<Record>> {
        self.flush_kernel_log()?;
        Ok(self.arrivals.records())
    }

    /// Everything that the kernel has complained of since it booted.
    ///
    /// # Errors
    ///
    /// When the guest is gone; [`known_complaints`](Self::known_complaints) then has those that
    /// arrived.
    pub fn complaints(&self) -> Result<Vec<Complaint>> {
        self.flush_kernel_log()?;
        Ok(self.known_complaints())
    }

    /// The complaints that have arrived.
    #[must_use]
    pub fn known_complaints(&self) -> Vec<Complaint> {
        self.arrivals.complaints()
    }

    /// Asks the guest to switch the machine off.
    ///
    /// # Errors
    ///
    /// When the guest is gone.
    pub fn power_off(&self) -> Result<()> {
        let doing = "switching off".to_owned();
        self.call(doing, Request::PowerOff, ANSWER)?;
        Ok(())
    }

    fn flush_kernel_log(&self) -> Result<()> {
        let doing = "reading the kernel log".to_owned();
        self.call(doing, Request::FlushKernelLog, ANSWER)?;
        Ok(())
    }

    /// Makes a request that has one answer, within `limit` at this guest's pace.
    fn call(&self, doing: String, request: Request, limit: Duration) -> Result<Answer> {
        self.begin(doing, Some(self.pace.scale(limit)), request)?
            .answer()
    }

    fn begin(
        &self,
        doing: String,
        limit: Option<Duration>,
        request: Request,
    ) -> Result<Running<'_>> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let program = matches!(request, Request::Run(_) | Request::Shell(_));
        let Some(arrivals) = self.arrivals.expect(id) else {
            return Err(self.gone(doing));
        };
        let running = Running::new(self, id, doing, limit, arrivals, program);
        if self.tell(&Call { id, request }).is_err() {
            return Err(running.gone());
        }
        Ok(running)
    }

    fn tell(&self, call: &Call) -> io::Result<()> {
        let mut connection = self.to_agent.lock().unwrap_or_else(PoisonError::into_inner);
        protocol::send(&mut *connection, call)
    }

    fn gone(&self, doing: String) -> Error {
        Error::Gone {
            doing,
            why: self.arrivals.why_gone(),
            console: last_words(&self.logs),
            logs: self.logs.directory().to_owned(),
        }
    }
}

/// What the console shows of a guest that is gone: its kernel's complaints and the last lines.
fn last_words(logs: &Logs) -> String {
    /// The first complaints show the cause; later ones are its effects.
    const COMPLAINTS: usize = 5;
    let console = std::fs::read(logs.console()).unwrap_or_default();
    let mut words: Vec<String> = judge_console(&String::from_utf8_lossy(&console), LOG_MARK)
        .into_iter()
        .take(COMPLAINTS)
        .map(|complaint| format!("    {complaint}"))
        .collect();
    words.push(last_lines(logs));
    words.join("\n")
}

/// The last lines of the console, or that there are none: a kernel that lacks memory says nothing.
fn last_lines(logs: &Logs) -> String {
    let lines = tail(&logs.console());
    if lines.trim().is_empty() {
        "    nothing: the kernel ended before its first message, as it does for want of memory"
            .to_owned()
    } else {
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_console_that_is_silent_is_told_as_silent() {
        let directory = tempfile::tempdir().unwrap();
        let logs = Logs::create(directory.path(), "silent").unwrap();
        assert!(last_words(&logs).contains("nothing:"));
        std::fs::write(logs.console(), "\r\n").unwrap();
        assert!(last_words(&logs).contains("nothing:"));
        std::fs::write(logs.console(), "Linux version 7.3\n").unwrap();
        let words = last_words(&logs);
        assert!(
            words.contains("Linux version") && !words.contains("nothing:"),
            "{words}"
        );
    }
}
