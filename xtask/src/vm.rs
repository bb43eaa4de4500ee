//! `cargo xtask vm`: a machine for a person, with what the checkout builds.
//!
//! It turns the command line into settings; the machine is the fixture's.

use std::process::ExitCode;

use anyhow::Result;
use hmm_tests::session::{self, Settings};

use crate::args::VmArgs;
use crate::cargo::Checkout;
use crate::prepare::Prepared;

/// Gives a shell in the guest, or runs one command there and ends as it does.
pub(crate) fn vm(args: &VmArgs) -> Result<ExitCode> {
    let prepared = Prepared::for_kernels(&Checkout::locate()?, &[args.kernel])?;
    let settings = Settings {
        kernel: args.kernel.name().to_owned(),
        memory: args.memory,
        device_memory: args.device_memory,
        devices: usize::from(args.devices),
        coherent_devices: usize::from(args.coherent_devices),
        files: args.files.clone(),
        module_parameters: if args.dmirror {
            vec!["dmirror=1".to_owned()]
        } else {
            Vec::new()
        },
    };
    if args.command.is_empty() {
        session::shell(&prepared.artifacts, &settings)?;
        return Ok(ExitCode::SUCCESS);
    }
    let status = session::run_command(&prepared.artifacts, &settings, &args.command)?;
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(u8::MAX)))
}
