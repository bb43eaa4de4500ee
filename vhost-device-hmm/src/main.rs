//! The daemon: command line, log, and then [`server::serve`] until a signal.
//!
//! The only place that ends the process.

use std::error::Error;
use std::fs::File;
use std::process::ExitCode;

use clap::Parser;
use env_logger::{Builder, Env, Target};
use log::LevelFilter;
use vhost_device_hmm::args::Args;
use vhost_device_hmm::device::DeviceConfig;
use vhost_device_hmm::{scheduling, server};

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhost-device-hmm: {error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprintln!("  because: {cause}");
                source = cause.source();
            }
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    if args.print_capabilities {
        println!("{}", capabilities());
        return Ok(());
    }
    start_log(args)?;
    let path = args
        .socket_path
        .as_deref()
        .ok_or("a socket path is needed")?;
    args.check_memory()?;
    let device = args.device();
    if let Err(error) = scheduling::ask_for_short_slices() {
        log::info!("the host gives threads slices as to all others: {error}");
    }
    server::serve(path, &device, args.backend(), || {
        eprintln!(
            "vhost-device-hmm: listening on {} ({})",
            path.display(),
            describe(&device, args.coherent)
        );
    })?;
    Ok(())
}

fn start_log(args: &Args) -> Result<(), Box<dyn Error>> {
    let mut log = Builder::from_env(Env::default().default_filter_or("warn"));
    if let Some(level) = args.log_level {
        log.filter_level(level);
    }
    // It tells of a guest's mistakes, as often as the guest likes, as if they were errors
    // of ours. What follows from them is logged here.
    log.filter_module("virtio_queue", LevelFilter::Off);
    if let Some(path) = &args.log_file {
        let file = File::options()
            .append(true)
            .create(true)
            .open(path)
            .map_err(|error| format!("cannot write the log to {}: {error}", path.display()))?;
        log.target(Target::Pipe(Box::new(file)));
    }
    log.try_init()?;
    Ok(())
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

/// What management software asks a vhost-user program for before it starts it.
fn capabilities() -> serde_json::Value {
    serde_json::json!({ "type": "hmm", "features": [] })
}
