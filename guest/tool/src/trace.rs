//! `hmm trace`: the driver's tracepoints while a command runs.
//!
//! It knows neither the events nor how the kernel is asked for them.

mod tracefs;

use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::{Context, Result};
use hmm_cli::{output, remark};
use hmm_timeline::draw::draw;
use hmm_timeline::guest::Guest;
use hmm_timeline::perfetto;
use hmm_timeline::summary::OfGuest;

use self::tracefs::Instance;

/// The end of the name of a file for Perfetto; another file gets the events as text.
const PERFETTO: &str = "pftrace";

/// What to trace, and where to.
pub(crate) struct Plan<'a> {
    pub(crate) file: Option<&'a Path>,
    pub(crate) events: &'a [String],
    pub(crate) buffer: u64,
    pub(crate) quiet: bool,
    pub(crate) json: bool,
    pub(crate) command: &'a [OsString],
}

/// Runs the command, and returns its exit status: 128 and the signal's number if a signal has ended it,
/// 127 if there is no such command, and 126 if it cannot be run.
pub(crate) fn run(plan: &Plan<'_>) -> Result<u8> {
    let instance = Instance::new(plan.buffer)?;
    instance.enable(plan.events)?;
    let mut pipe = instance.pipe()?;
    let (status, text) = thread::scope(|scope| {
        let reading = scope.spawn(|| pipe.read_until_over());
        let status = status(plan.command);
        instance.end();
        let text = reading
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a bug in the reader")));
        (status, text)
    });
    let status = status?;
    let text = text.context("reading the trace")?;
    let guest = Guest::read(&text);
    if let Some(path) = plan.file {
        let written = if path.extension().is_some_and(|end| end == PERFETTO) {
            fs::write(path, perfetto::encode(&draw(&guest, &[])))
        } else {
            fs::write(path, &text)
        };
        written.with_context(|| format!("writing {}", path.display()))?;
    }
    let sums = OfGuest::of(&guest);
    if plan.json {
        remark!("{}", serde_json::to_string(&sums)?);
    } else if !plan.quiet {
        output::errors(sums.text().as_bytes());
    }
    Ok(status)
}

/// Runs a command to its end.
fn status(command: &[OsString]) -> Result<u8> {
    let (program, arguments) = command.split_first().context("there is no command")?;
    match Command::new(program).args(arguments).status() {
        Ok(status) => {
            use std::os::unix::process::ExitStatusExt;
            let by_signal = status.signal().map(|signal| 128 + signal);
            let status = status.code().or(by_signal).unwrap_or(1);
            Ok(u8::try_from(status & 0xff).unwrap_or(1))
        }
        Err(error) => {
            remark!("hmm: {}: {error}", program.to_string_lossy());
            Ok(if error.kind() == io::ErrorKind::NotFound {
                127
            } else {
                126
            })
        }
    }
}
