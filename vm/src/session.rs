//! A person's machine: a shell, or one command.

use std::io::{self, IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;

use anyhow::{bail, ensure, Context, Result};
use hmm_cli::output::{self, CLOSED};
use hmm_cli::remark;
use rustix::io::Errno;
use rustix::termios::{tcgetattr, tcgetwinsize, tcsetattr, OptionalActions, Termios};

use crate::artifacts::Artifacts;
use crate::guest::{self, Command, Status, Stream, Terminal};
use crate::qemu::Machine;
use crate::vm::{Builder, Vm, GIB, MIB};

/// The options of a person's machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The kernel's name among the artifacts.
    pub kernel: String,
    /// The size of the guest's memory in bytes.
    pub memory: u64,
    /// The size of each device's memory in bytes.
    pub device_memory: u64,
    /// The number of devices with private memory.
    pub devices: usize,
    /// The number of devices with coherent memory, which come after the private ones.
    pub coherent_devices: usize,
    /// Files for the guest's `/root`.
    pub files: Vec<PathBuf>,
    /// Parameters of the driver, such as `dmirror=1`.
    pub module_parameters: Vec<String>,
    /// The number of the guest's processors.
    pub cpus: u32,
    /// Whether the guest's clock counts instructions. The machine then has one processor.
    pub icount: bool,
    /// The kind of machine.
    pub machine: Machine,
    /// The number of each device's engines; the daemon's own choice by default.
    pub engines: Option<u32>,
    /// Whether devices look for uses of stale translations and freed frames.
    pub check: bool,
    /// Rules that make one device, or all of them, late or wrong.
    pub rules: Vec<(Option<usize>, String)>,
    /// What the daemons log.
    pub daemon_log: String,
    /// Additions to the kernel's command line.
    pub kernel_arguments: Vec<String>,
    /// Whether to say where the control sockets are.
    pub show_control: bool,
    /// A directory of the host that the guest can read and write.
    pub share: Option<PathBuf>,
    /// Whether the guest has the Debian programs of the artifacts.
    pub userland: bool,
    /// Whether the machine waits for a debugger.
    pub debugger: bool,
    /// Whether driver and devices trace what they do while the command runs.
    pub trace: bool,
}

/// How a command has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its exit status.
    pub status: i32,
    /// What was traced.
    pub trace: Option<Traced>,
}

/// What driver and devices have traced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traced {
    /// The driver's events, as the kernel's lines.
    pub events: String,
    /// The files with the records of the devices.
    pub devices: Vec<PathBuf>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            kernel: "stock".to_owned(),
            memory: 2 * GIB,
            device_memory: 512 * MIB,
            devices: 1,
            coherent_devices: 0,
            files: Vec::new(),
            module_parameters: Vec::new(),
            cpus: 2,
            icount: false,
            machine: Machine::default(),
            engines: None,
            check: false,
            rules: Vec::new(),
            daemon_log: "info".to_owned(),
            kernel_arguments: Vec::new(),
            show_control: false,
            share: None,
            userland: false,
            debugger: false,
            trace: false,
        }
    }
}

impl Settings {
    fn builder<'a>(&self, artifacts: &'a Artifacts) -> Builder<'a> {
        let machine = Vm::builder(artifacts)
            .name("session")
            .kernel(&self.kernel)
            .memory(self.memory)
            .device_memory(self.device_memory)
            .devices(self.devices)
            .coherent_devices(self.coherent_devices)
            .cpus(self.cpus)
            .machine(self.machine)
            .daemon_log(&self.daemon_log);
        let mut machine = self.files.iter().fold(machine, Builder::file);
        if let Some(engines) = self.engines {
            machine = machine.engines(engines);
        }
        if self.icount {
            machine = machine.icount();
        }
        if self.check {
            machine = machine.check();
        }
        if let Some(share) = &self.share {
            machine = machine.share(share);
        }
        if self.userland {
            machine = machine.userland();
        }
        if self.debugger {
            machine = machine.debugger();
        }
        if self.trace {
            machine = machine.trace();
        }
        for parameter in &self.module_parameters {
            machine = machine.module_parameter(parameter);
        }
        for argument in &self.kernel_arguments {
            machine = machine.kernel_argument(argument);
        }
        for (device, rule) in &self.rules {
            machine = match device {
                Some(device) => machine.rule(*device, rule),
                None => machine.rule_for_all(rule),
            };
        }
        machine
    }

    /// Starts the machine.
    fn start(&self, builder: Builder<'_>) -> Result<Vm> {
        let devices = self.devices + self.coherent_devices;
        for (device, rule) in &self.rules {
            ensure!(
                device.is_none_or(|device| device < devices),
                "there is no such device as {rule} is for; they are numbered from 0 to {}",
                devices.saturating_sub(1)
            );
        }
        let vm = builder.start()?;
        if self.show_control {
            for device in 0..devices {
                let socket = vm.daemon(device).control().socket();
                remark!(
                    "device {device}: vhost-device-hmm ctl {} points",
                    socket.display()
                );
            }
        }
        Ok(vm)
    }
}

/// Where a guest keeps the driver's events.
const EVENTS: &str = "/tmp/hmm.events";

/// Runs a command in a fresh machine, without a time limit, and prints its output. Returns its exit
/// status, or what a shell returns instead: 128 plus the number of the signal that killed it, 127 if
/// there is no such command, 126 if the command cannot be run. A reader that has gone ends the
/// command; the status is [`CLOSED`] then.
///
/// # Errors
///
/// When the machine does not start, or the kernel or the daemon complained.
pub fn run_command(
    artifacts: &Artifacts,
    settings: &Settings,
    command: &[String],
) -> Result<Ended> {
    ensure!(!command.is_empty(), "there is no command to run");
    let vm = settings.start(settings.builder(artifacts))?;
    let program = if settings.trace {
        Command::new("hmm")
            .arguments(["trace", "--quiet", "-o", EVENTS, "--"])
            .arguments(command)
    } else {
        Command::from(command)
    };
    let ended = vm
        .spawn(program.unlimited())?
        .stream_while(|stream, bytes| match stream {
            Stream::Output if write_all(&mut io::stdout(), bytes).is_err() => {
                ControlFlow::Break(())
            }
            Stream::Output => ControlFlow::Continue(()),
            Stream::Error => {
                output::errors(bytes);
                ControlFlow::Continue(())
            }
        });
    let status = match ended {
        Ok(Some(Status::Exited(status))) => status,
        Ok(Some(Status::Signalled(signal))) => 128 + signal,
        Ok(None) => CLOSED.into(),
        Err(guest::Error::Refused { errno, reason, .. }) => {
            remark!("{}: {reason}, in the guest", command[0]);
            not_run(errno)
        }
        Err(error) => return Err(error.into()),
    };
    let events = if settings.trace {
        Some(
            vm.guest()
                .read_file(EVENTS)
                .context("reading the driver's events")?,
        )
    } else {
        None
    };
    let logs = vm.logs().clone();
    // The traces of the devices are complete after that.
    vm.switch_off()?;
    let devices = settings.devices + settings.coherent_devices;
    let trace = events.map(|events| Traced {
        events: String::from_utf8_lossy(&events).into_owned(),
        devices: (0..devices).map(|device| logs.trace(device)).collect(),
    });
    Ok(Ended { status, trace })
}

/// The exit status of a command that could not be run, as a shell has it.
fn not_run(errno: Option<i32>) -> i32 {
    if errno == Some(Errno::NOENT.raw_os_error()) {
        127
    } else {
        126
    }
}

/// Gives the person a shell in a fresh machine, until the person leaves it.
///
/// # Errors
///
/// When there is no terminal, the machine does not start, or the kernel or the
/// daemon complained.
pub fn shell(artifacts: &Artifacts, settings: &Settings) -> Result<()> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        bail!("a shell needs a terminal; to run a command, add it after `--`");
    }
    let size = tcgetwinsize(&stdin)?;
    let _restored = TerminalModes::keep()?;
    remark!("Starting a machine; leave its shell with `exit`.");
    let vm = settings.start(settings.builder(artifacts).on_terminal())?;
    let terminal = Terminal {
        kind: std::env::var("TERM").unwrap_or_else(|_| "linux".to_owned()),
        rows: size.ws_row,
        columns: size.ws_col,
    };
    vm.guest().shell(terminal)?.wait()?;
    vm.switch_off()
}

/// Restores the modes of the terminal: QEMU cannot do it when it is killed.
struct TerminalModes(Termios);

impl TerminalModes {
    fn keep() -> Result<Self> {
        Ok(Self(tcgetattr(io::stdin())?))
    }
}

impl Drop for TerminalModes {
    fn drop(&mut self) {
        // If the terminal is gone, nothing can be done.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

fn write_all(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_that_cannot_be_run_has_the_status_that_a_shell_gives_it() {
        assert_eq!(not_run(Some(Errno::NOENT.raw_os_error())), 127);
        assert_eq!(not_run(Some(Errno::ACCESS.raw_os_error())), 126);
        assert_eq!(not_run(None), 126);
    }
}
