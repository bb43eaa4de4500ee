//! `vhost-device-hmm ctl`: the other end of the control socket, for people and scripts.

use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::protocol::{Request, VERSION};

/// How long a daemon may take to send its greeting.
const GREETING: Duration = Duration::from_secs(5);

/// Look at a daemon while it runs, and steer it
///
/// The daemon must have been started with `--control PATH`.
#[derive(Clone, Debug, Args)]
pub struct Ctl {
    /// The daemon's control socket
    #[arg(value_name = "PATH")]
    pub path: PathBuf,

    /// Print the answer as JSON, as it came
    #[arg(long, global = true)]
    pub json: bool,

    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands for a daemon.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// A request of the protocol, unchanged.
    #[command(flatten)]
    Request(Request),
    /// End a rule and release what it holds
    Clear {
        /// Its number, as `set` and `rules` print it
        #[arg(required_unless_present = "all")]
        rule: Option<u64>,
        /// All rules
        #[arg(long, conflicts_with = "rule")]
        all: bool,
    },
    /// Send one request as JSON, such as: raw '{"command":"points"}'
    Raw {
        /// The request
        request: String,
    },
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No process listens there.
    #[error("cannot connect to {path}; is a daemon running with --control {path}?", path = .0.display())]
    Connect(PathBuf, #[source] io::Error),
    /// The connection broke.
    #[error("the daemon did not answer")]
    Broken(#[source] io::Error),
    /// A different program listens there.
    #[error("{0} does not greet as a control socket does; is it the vhost-user socket?")]
    Stranger(String),
    /// The daemon speaks another version.
    #[error("the daemon speaks version {0} of the protocol and this program version {VERSION}; use the program of the same build")]
    Version(u64),
    /// The request is not JSON.
    #[error("the request is not JSON")]
    Request(#[source] serde_json::Error),
    /// The daemon refused the request.
    #[error("{0}")]
    Refused(String),
}

/// Sends one command and returns what to print.
///
/// # Errors
///
/// [`Error`], also when the daemon refuses.
pub fn run(ctl: &Ctl) -> Result<String, Error> {
    let request = match &ctl.command {
        Command::Request(request) => serde_json::to_value(request),
        Command::Clear { rule: None, .. } => serde_json::to_value(Request::ClearRules),
        Command::Clear {
            rule: Some(rule), ..
        } => serde_json::to_value(Request::ClearRule { rule: *rule }),
        Command::Raw { request } => serde_json::from_str(request),
    }
    .map_err(Error::Request)?;
    let answer = ask(&ctl.path, &request)?;
    if ctl.json || matches!(ctl.command, Command::Raw { .. }) {
        return Ok(format!("{answer:#}\n"));
    }
    Ok(show(&ctl.command, &answer))
}

/// Sends one request and returns its result.
fn ask(path: &Path, request: &Value) -> Result<Value, Error> {
    let mut connection =
        UnixStream::connect(path).map_err(|error| Error::Connect(path.to_owned(), error))?;
    let mut lines = BufReader::new(connection.try_clone().map_err(Error::Broken)?);
    let mut read = || -> Result<Value, Error> {
        let mut line = String::new();
        lines.read_line(&mut line).map_err(Error::Broken)?;
        let stranger = |_| Error::Stranger(path.display().to_string());
        serde_json::from_str(&line).map_err(stranger)
    };
    // If another program listens there, it may be waiting for us.
    connection
        .set_read_timeout(Some(GREETING))
        .map_err(Error::Broken)?;
    let greeting = read().map_err(|_| Error::Stranger(path.display().to_string()))?;
    connection.set_read_timeout(None).map_err(Error::Broken)?;
    refused(&greeting)?;
    match greeting.get("version").and_then(Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => return Err(Error::Version(version)),
        None => return Err(Error::Stranger(path.display().to_string())),
    }
    connection
        .write_all(format!("{request}\n").as_bytes())
        .map_err(Error::Broken)?;
    let mut answer = read()?;
    refused(&answer)?;
    Ok(answer.get_mut("result").map_or(Value::Null, Value::take))
}

fn refused(answer: &Value) -> Result<(), Error> {
    let message = answer.get("error").and_then(|error| error.get("message"));
    match message.and_then(Value::as_str) {
        Some(message) => Err(Error::Refused(message.to_owned())),
        None => Ok(()),
    }
}

/// An answer for people.
fn show(command: &Command, answer: &Value) -> String {
    let Command::Request(request) = command else {
        return members(answer);
    };
    let rows = answer.as_array().map_or(&[][..], Vec::as_slice);
    match request {
        Request::Points => table(rows, &["point", "swap", "meaning"]),
        Request::Rules => table(rows, &["rule", "text", "occasions", "happened"]),
        Request::Held => table(
            rows,
            &[
                "point",
                "rule",
                "space",
                "operation",
                "milliseconds",
                "milliseconds-left",
            ],
        ),
        Request::SetRule { .. } | Request::Hold { .. } => {
            format!("{}\n", word(answer.get("rule")))
        }
        Request::WaitHeld { .. } => table(
            std::slice::from_ref(answer),
            &["point", "rule", "space", "operation", "milliseconds"],
        ),
        Request::Mappings { .. } => table(
            rows,
            &[
                "address", "pages", "order", "memory", "frame", "rights", "accessed", "dirty",
            ],
        ),
        Request::Dump => dump(answer),
        _ => members(answer),
    }
}

/// The members of an object, one per line.
fn members(answer: &Value) -> String {
    let mut text = String::new();
    let members = answer.as_object().into_iter().flatten();
    let width = members
        .clone()
        .map(|(name, _)| name.len())
        .max()
        .unwrap_or(0);
    for (name, value) in members {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:width$}  {}", word(Some(value)));
    }
    text
}

fn dump(answer: &Value) -> String {
    let mut text = String::new();
    for (name, value) in answer.as_object().into_iter().flatten() {
        let Some(rows) = value.as_array() else {
            let _ = writeln!(text, "{name}: {}", word(Some(value)));
            continue;
        };
        let _ = writeln!(text, "\n{name}: {}", rows.len());
        let Some(Value::Object(first)) = rows.first() else {
            continue;
        };
        let columns: Vec<&str> = first.keys().map(String::as_str).collect();
        text.push_str(&table(rows, &columns));
    }
    text
}

fn table(rows: &[Value], columns: &[&str]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let heading = columns.iter().map(|column| column.to_uppercase()).collect();
    let cells = rows.iter().map(|row| {
        let cells = columns.iter().map(|column| word(row.get(column)));
        cells.collect::<Vec<String>>()
    });
    let lines: Vec<Vec<String>> = std::iter::once(heading).chain(cells).collect();
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| {
            let cells = lines.iter().filter_map(|line| line.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for line in lines {
        let mut row = String::new();
        for (cell, width) in line.iter().zip(&widths) {
            let _ = write!(row, "{cell:width$}  ");
        }
        let _ = writeln!(text, "{}", row.trim_end());
    }
    text
}

/// A value in a cell.
fn word(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".into(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(true)) => "yes".into(),
        Some(Value::Bool(false)) => "no".into(),
        Some(value) => value.to_string(),
    }
}
