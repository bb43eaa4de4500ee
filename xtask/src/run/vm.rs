//! `cargo xtask vm`: a person's machine, with what the checkout builds.
//!
//! It turns the command line into settings; the machine is the fixture's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{ensure, Context, Result};
use hmm_cli::{output, remark};
use hmm_timeline::perfetto;
use hmm_timeline::together::Together;
use hmm_vm::qemu::Machine;
use hmm_vm::session::{self, Ended, Settings, Traced};

use crate::args::{MachineChoice, VmArgs};
use crate::setup::cargo::{Checkout, Purpose};
use crate::setup::prepare::Prepared;

/// Gives a shell in the guest, or runs one command there and returns its exit status.
pub(crate) fn vm(args: &VmArgs) -> Result<ExitCode> {
    let purpose = match args.tools {
        true => Purpose::Tools,
        false => Purpose::Machine,
    };
    let (prepared, kernel) = Prepared::for_kernel(&Checkout::locate()?, &args.kernel, purpose)?;
    let share = match &args.share {
        Some(share) => {
            let path = share.canonicalize();
            let path = path.with_context(|| format!("looking for {}", share.display()))?;
            ensure!(path.is_dir(), "{} is no directory", path.display());
            Some(path)
        }
        None => None,
    };
    let mut parameters = args.parameters.clone();
    if args.dmirror {
        parameters.push("dmirror=1".to_owned());
    }
    let settings = Settings {
        kernel,
        memory: args.memory,
        device_memory: args.device_memory,
        devices: usize::from(args.devices),
        coherent_devices: usize::from(args.coherent_devices),
        files: args.files.clone(),
        module_parameters: parameters,
        cpus: args.cpus,
        icount: args.icount,
        machine: match args.machine {
            MachineChoice::Q35 => Machine::Q35,
            MachineChoice::Microvm => Machine::Microvm,
        },
        engines: args.engines,
        check: args.check,
        rules: args.rules.clone(),
        daemon_log: args.daemon_log.clone(),
        kernel_arguments: args.append.clone(),
        show_control: args.control,
        share,
        userland: args.tools,
        debugger: args.gdb,
        trace: args.trace.is_some(),
    };
    if args.command.is_empty() {
        session::shell(&prepared.artifacts, &settings)?;
        return Ok(ExitCode::SUCCESS);
    }
    let Ended { status, trace } =
        session::run_command(&prepared.artifacts, &settings, &args.command)?;
    if let (Some(path), Some(traced)) = (&args.trace, trace) {
        write_timeline(path, &traced)?;
    }
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
}

/// Writes what was traced to a file, and says what it adds up to.
fn write_timeline(path: &Path, traced: &Traced) -> Result<()> {
    let read = |file: &PathBuf| {
        fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))
    };
    let devices = traced
        .devices
        .iter()
        .map(read)
        .collect::<Result<Vec<_>>>()?;
    let together = Together::read(&traced.events, devices.iter().map(String::as_str))?;
    fs::write(path, perfetto::encode(&together.tracks()))
        .with_context(|| format!("writing {}", path.display()))?;
    output::errors(together.text().as_bytes());
    remark!("{}: https://ui.perfetto.dev opens it", path.display());
    Ok(())
}
