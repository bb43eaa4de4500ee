//! The daemon: command line, sandbox, log, and then [`server::serve`] until a signal.
//!
//! Only this file ends the process.

use std::error::Error;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::IntoRawFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use env_logger::{Builder, Env, Target, WriteStyle};
use hmm_cli::figure;
use log::LevelFilter;
use sd_notify::NotifyState;
use vhost_device_hmm::args::{Args, Command};
use vhost_device_hmm::backend::Options;
use vhost_device_hmm::control_socket::client::{self, Ctl};
use vhost_device_hmm::device::DeviceConfig;
use vhost_device_hmm::lateness::Lateness;
use vhost_device_hmm::outlet::Outlet;
use vhost_device_hmm::sandbox::{self, Gaps};
use vhost_device_hmm::server::{self, Signals, Sockets, Stage};
use vhost_device_hmm::service::ServiceManager;
use vhost_device_hmm::{last_words, report, scheduling, sigbus, trace};

/// How long writing the last lines may take.
const LAST_WORDS: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    // Programs ask for this with whatever else they will start the daemon with.
    if std::env::args_os().any(|argument| argument == "--print-capabilities") {
        return match writeln!(io::stdout(), "{}", capabilities()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    let args = Args::parse();
    if let Some(Command::Ctl(ctl)) = &args.command {
        return control(ctl);
    }
    // With one thread. All later ones are in the sandbox.
    let prepared = Prepared::new(&args);
    let stderr = match Outlet::new(io::stderr()) {
        Ok(stderr) => stderr,
        Err(error) => {
            // If this cannot be written, there is no other place to report it.
            let _ = io::stderr().write_all(sentence(&error).as_bytes());
            return ExitCode::FAILURE;
        }
    };
    let ended = prepared.and_then(|prepared| run(&args, prepared, &stderr));
    if let Err(error) = &ended {
        stderr.put(sentence(&**error).as_bytes());
    }
    stderr.flush(LAST_WORDS);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Sends a command to a daemon.
fn control(ctl: &Ctl) -> ExitCode {
    // If this cannot be written, there is no other place to report it.
    match client::run(ctl) {
        Ok(answer) => {
            let _ = io::stdout().write_all(answer.as_bytes());
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = io::stderr().write_all(sentence(&error).as_bytes());
            ExitCode::FAILURE
        }
    }
}

/// The text of an error and its causes.
fn sentence(error: &dyn Error) -> String {
    let mut text = format!("vhost-device-hmm: {error}\n");
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!("  because: {cause}\n"));
        source = cause.source();
    }
    text
}

/// What a daemon has when it enters the sandbox, where it can get no more.
struct Prepared {
    sockets: Sockets,
    signals: Signals,
    manager: ServiceManager,
    options: Options,
    log: Builder,
    log_file: Option<File>,
    trace: Option<trace::Prepared>,
    /// What is logged until a client of the control socket changes it.
    log_level: LevelFilter,
    /// What there is to say about the start, once there is a log.
    notes: Vec<String>,
    gaps: Gaps,
}

impl Prepared {
    /// Opens all that the daemon needs, and enters the sandbox.
    fn new(args: &Args) -> Result<Self, Box<dyn Error>> {
        args.check_memory()?;
        let mut sockets = match Sockets::open(args.place(), args.control.as_deref()) {
            Err(server::Error::NoSocket) => Args::command()
                .error(ErrorKind::MissingRequiredArgument, server::Error::NoSocket)
                .exit(),
            opened => opened?,
        };
        let signals = Signals::take()?;
        let manager = ServiceManager::of_this_process()
            .map_err(|error| format!("cannot reach systemd by NOTIFY_SOCKET: {error}"))?;
        let options = args.backend();
        let log_file = args.log_file.as_deref().map(open_log).transpose()?;
        let trace = args.trace.as_deref().map(begin_trace).transpose()?;
        let log = log_as_asked(args, log_file.is_none(), sockets.have_control());
        let log_level = log_filter(args).build().filter();
        let mut notes = Vec::new();
        if let Err(error) = scheduling::ask_for_short_slices() {
            notes.push(format!(
                "the host gives threads slices as to all others: {error}"
            ));
        }
        sigbus::report()?;
        let gaps = sandbox::enter(args.sandbox, || sockets.start_helper())?;
        Ok(Self {
            sockets,
            signals,
            manager,
            options,
            log,
            log_file,
            trace,
            log_level,
            notes,
            gaps,
        })
    }
}

fn run(args: &Args, prepared: Prepared, stderr: &Outlet) -> Result<(), Box<dyn Error>> {
    let Prepared {
        sockets,
        signals,
        manager,
        options,
        log,
        log_file,
        trace,
        log_level,
        notes,
        gaps,
    } = prepared;
    let log = start_log(log, log_level, log_file, stderr)?;
    trace.map(trace::Prepared::start).transpose()?;
    notes.iter().for_each(|note| log::info!("{note}"));
    let device = args.device();
    let lateness = Arc::new(Lateness::new(&args.rule));
    let kind = describe(&device, args.coherent);
    let waits = format!("vhost-device-hmm: {} ({kind})\n", sockets.description());
    let first = AtomicBool::new(true);
    let entered = |stage| match stage {
        Stage::Waiting => {
            if first.swap(false, Ordering::Relaxed) {
                stderr.put(waits.as_bytes());
                for gap in &gaps {
                    log::warn!("the sandbox is not complete on this system: {gap}");
                }
            }
            manager.tell(&[NotifyState::Ready, NotifyState::Status("no front end")]);
        }
        Stage::Serving => manager.tell(&[NotifyState::Status("serving a front end")]),
        Stage::Ending => manager.tell(&[NotifyState::Stopping]),
    };
    let served = server::serve(sockets, &device, options, &lateness, &signals, entered);
    trace::flush(LAST_WORDS);
    log.flush(LAST_WORDS);
    Ok(served?)
}

/// What the command line, or RUST_LOG, lets into the log.
fn log_filter(args: &Args) -> Builder {
    let mut log = Builder::new();
    log.parse_env(Env::default().default_filter_or("warn"));
    if let Some(level) = args.log_level {
        log.filter_level(level);
    }
    log
}

/// A log that is not started yet. It looks for a terminal, which it cannot do in the sandbox.
fn log_as_asked(args: &Args, on_stderr: bool, with_control: bool) -> Builder {
    let mut log = log_filter(args);
    log.write_style(if on_stderr && io::stderr().is_terminal() {
        WriteStyle::Always
    } else {
        WriteStyle::Never
    });
    if with_control {
        // A client of the control socket may raise the level later.
        log.filter_level(LevelFilter::Trace);
    }
    // It logs a guest's mistakes as our errors, as often as the guest makes them. This crate logs
    // what follows from them.
    log.filter_module("virtio_queue", LevelFilter::Off);
    log
}

fn open_log(path: &Path) -> Result<File, String> {
    let mut options = File::options();
    let opened = options.append(true).create(true).open(path);
    opened.map_err(|error| format!("cannot write the log to {}: {error}", path.display()))
}

fn begin_trace(path: &Path) -> Result<trace::Prepared, String> {
    let begun = File::create(path).and_then(trace::Prepared::new);
    begun.map_err(|error| format!("cannot write a trace to {}: {error}", path.display()))
}

/// Starts the log, to a file or to standard error, and returns where it is written.
fn start_log(
    mut log: Builder,
    level: LevelFilter,
    file: Option<File>,
    stderr: &Outlet,
) -> Result<Outlet, Box<dyn Error>> {
    let outlet = match file {
        None => stderr.clone(),
        Some(file) => {
            // A descriptor of its own, which stays open.
            last_words::also_to(file.try_clone()?.into_raw_fd());
            Outlet::new(file)?
        }
    };
    log.target(Target::Pipe(Box::new(outlet.clone())));
    let log = log.build();
    report::install(log, level)?;
    Ok(outlet)
}

fn describe(device: &DeviceConfig, coherent: bool) -> String {
    let engines = match device.engines {
        1 => "1 engine".into(),
        engines => format!("{engines} engines"),
    };
    let kind = if coherent { "coherent " } else { "" };
    let check = if device.check { ", checking" } else { "" };
    format!(
        "{kind}device memory {}, {engines}{check}",
        figure::bytes(device.memory)
    )
}

/// What management software asks of a vhost-user program before it starts it.
fn capabilities() -> serde_json::Value {
    serde_json::json!({ "type": "hmm", "features": [] })
}
