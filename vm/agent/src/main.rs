//! The first process of a guest: it does what the host asks.
//!
//! It prepares the system, opens the port to the host and serves calls until the
//! host asks it to power off or goes away. It does not know the device, the
//! driver or any test: which module to load and which program to run is said in
//! the calls.

#![forbid(unsafe_code)]

mod kernel_log;
mod modules;
mod port;
mod programs;
mod system;
mod wake;

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{bail, Context, Result};
use hmm_agent::protocol::{Answer, Call, CallId, Event, Failure, Request, LOG_MARK, MAX_CHUNK};
use hmm_cli::remark;
use rustix::system::{reboot, RebootCommand};

use crate::kernel_log::KernelLog;
use crate::port::Events;
use crate::programs::Programs;

/// Where the kernel is told to sleep; the write ends when it is awake.
const SLEEP_STATES: &str = "/sys/power/state";

fn main() -> ExitCode {
    if std::process::id() != 1 {
        remark!("hmm-agent: this program is the first process of a test guest and nothing else");
        return ExitCode::FAILURE;
    }
    // Standard error is the console: errors before the port is open, or of the port itself, are
    // read there.
    if let Err(error) = serve() {
        remark!("hmm-agent: {error:#}");
    }
    power_off()
}

fn power_off() -> ExitCode {
    rustix::fs::sync();
    // It returns only on failure; the first process must not end in silence then.
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        remark!("hmm-agent: switching the machine off: {error}");
    }
    ExitCode::FAILURE
}

fn serve() -> Result<()> {
    system::mount_all()?;
    modules::load_listed()?;
    let (mut calls, events) = port::open()?;
    let agent = Agent::start(events)?;
    while let Some(call) = calls.next().context("reading the host's calls")? {
        let off = call.request == Request::PowerOff;
        agent.handle(call).context("answering the host")?;
        if off {
            return Ok(());
        }
    }
    bail!("the host has gone away")
}

/// Everything that calls act on.
struct Agent {
    events: Arc<Events>,
    programs: Arc<Programs>,
    log: KernelLog,
}

impl Agent {
    /// Greets the host and begins to forward the kernel log.
    fn start(events: Events) -> Result<Self> {
        let events = Arc::new(events);
        events
            .send(&Event::Hello {
                release: system::release(),
            })
            .context("greeting the host")?;
        kernel_log::write_line(LOG_MARK).context("marking the kernel log")?;
        Ok(Self {
            programs: Programs::new(Arc::clone(&events))?,
            log: KernelLog::follow(Arc::clone(&events))?,
            events,
        })
    }

    /// Does what a call asks for. An error means that the host cannot be reached.
    fn handle(&self, call: Call) -> io::Result<()> {
        let id = call.id;
        match call.request {
            Request::Run(program) => self.programs.run(id, &program),
            Request::Shell(terminal) => self.programs.run_shell(id, &terminal),
            Request::Sleep { state } => self.answer(id, done(self.sleep(&state))),
            Request::FlushKernelLog => self.log.flush(id),
            Request::PowerOff => self.answer(id, Ok(Answer::Done)),
            Request::Signal {
                program,
                signal,
                recipient,
            } => self.answer(id, done(self.programs.signal(program, signal, recipient))),
            Request::LoadModule { path, parameters } => {
                self.answer(id, done(modules::load(Path::new(&path), &parameters)))
            }
            Request::UnloadModule { name } => self.answer(id, done(modules::unload(&name))),
            Request::ReadFile { path } => {
                self.answer(id, read_file(Path::new(&path)).map(Answer::Contents))
            }
            Request::WriteFile { path, contents } => {
                self.answer(id, done(write_file(Path::new(&path), &contents)))
            }
        }
    }

    fn sleep(&self, state: &str) -> io::Result<()> {
        self.events
            .pause(|| write_file(Path::new(SLEEP_STATES), state.as_bytes()))?
    }

    fn answer(&self, call: CallId, result: io::Result<Answer>) -> io::Result<()> {
        self.events.send(&Event::Answered {
            call,
            result: result.map_err(|error| failure(&error)),
        })
    }
}

fn done(result: io::Result<()>) -> io::Result<Answer> {
    result.map(|()| Answer::Done)
}

fn failure(error: &io::Error) -> Failure {
    Failure {
        errno: error.raw_os_error(),
        reason: error.to_string(),
    }
}

fn read_file(path: &Path) -> io::Result<Vec<u8>> {
    let mut contents = Vec::new();
    // One byte more than fits tells a file that is too large from one that fits.
    let limit = u64::try_from(MAX_CHUNK + 1).map_err(io::Error::other)?;
    fs::File::open(path)?
        .take(limit)
        .read_to_end(&mut contents)?;
    if contents.len() > MAX_CHUNK {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("the file has more than {MAX_CHUNK} bytes"),
        ));
    }
    Ok(contents)
}

fn write_file(path: &Path, contents: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)?;
    file.write_all(contents)
}
