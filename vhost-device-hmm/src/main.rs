//! The daemon: command line, log, and then [`server::serve`] until a signal.
//!
//! Only this file ends the process.

use std::error::Error;
use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::IntoRawFd;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use env_logger::{Builder, Env, Target, WriteStyle};
use log::LevelFilter;
use vhost_device_hmm::args::{Args, Command};
use vhost_device_hmm::control_socket::client::{self, Ctl};
use vhost_device_hmm::device::DeviceConfig;
use vhost_device_hmm::lateness::Lateness;
use vhost_device_hmm::outlet::Outlet;
use vhost_device_hmm::server::{self, Signals, Steering};
use vhost_device_hmm::{report, scheduling, sigbus};

/// How long writing the last lines may take.
const LAST_WORDS: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(Command::Ctl(ctl)) = &args.command {
        return control(ctl);
    }
    if args.print_capabilities {
        return match writeln!(io::stdout(), "{}", capabilities()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::FAILURE,
        };
    }
    // Before any other thread exists.
    let started = Signals::take()
        .map_err(Into::into)
        .and_then(|signals| Ok((signals, Outlet::new(io::stderr())?)));
    let (signals, stderr) = match started {
        Ok(started) => started,
        Err(error) => {
            let error: Box<dyn Error> = error;
            // If this cannot be written, there is no other place to report it.
            let _ = io::stderr().write_all(sentence(&*error).as_bytes());
            return ExitCode::FAILURE;
        }
    };
    let ended = run(&args, &signals, &stderr);
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

fn run(args: &Args, signals: &Signals, stderr: &Outlet) -> Result<(), Box<dyn Error>> {
    let log = start_log(args, stderr)?;
    let path = args
        .socket_path
        .as_deref()
        .ok_or("a socket path is needed")?;
    args.check_memory()?;
    let device = args.device();
    if let Err(error) = scheduling::ask_for_short_slices() {
        log::info!("the host gives threads slices as to all others: {error}");
    }
    let steering = Steering {
        lateness: Arc::new(Lateness::new(&args.rule)),
        control: args.control.as_deref(),
    };
    let served = server::serve(path, &device, args.backend(), &steering, signals, || {
        let kind = describe(&device, args.coherent);
        let line = format!(
            "vhost-device-hmm: listening on {} ({kind})\n",
            path.display()
        );
        stderr.put(line.as_bytes());
    });
    log.flush(LAST_WORDS);
    Ok(served?)
}

/// A log as the command line or RUST_LOG sets it.
fn log_as_asked(args: &Args) -> Builder {
    let mut log = Builder::new();
    log.parse_env(Env::default().default_filter_or("warn"));
    if let Some(level) = args.log_level {
        log.filter_level(level);
    }
    log
}

/// Starts the log and returns where it is written.
fn start_log(args: &Args, stderr: &Outlet) -> Result<Outlet, Box<dyn Error>> {
    let at_first = log_as_asked(args).build().filter();
    let mut log = log_as_asked(args);
    if args.log_file.is_none() && io::stderr().is_terminal() {
        log.write_style(WriteStyle::Always);
    }
    if args.control.is_some() {
        // A client of the control socket may raise the level later.
        log.filter_level(LevelFilter::Trace);
    }
    // It logs a guest's mistakes as our errors, as often as the guest makes them. This crate logs
    // what follows from them.
    log.filter_module("virtio_queue", LevelFilter::Off);
    let outlet = match &args.log_file {
        None => {
            sigbus::have_last_words(None::<&File>)?;
            stderr.clone()
        }
        Some(path) => {
            let file = File::options()
                .append(true)
                .create(true)
                .open(path)
                .map_err(|error| format!("cannot write the log to {}: {error}", path.display()))?;
            // A descriptor of its own, which stays open.
            sigbus::have_last_words(Some(&file.try_clone()?.into_raw_fd()))?;
            Outlet::new(file)?
        }
    };
    log.target(Target::Pipe(Box::new(outlet.clone())));
    let log = log.build();
    report::install(log, at_first)?;
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
        "{kind}device memory {} MiB, {engines}{check}",
        device.memory >> 20
    )
}

/// What management software asks of a vhost-user program before it starts it.
fn capabilities() -> serde_json::Value {
    serde_json::json!({ "type": "hmm", "features": [] })
}
