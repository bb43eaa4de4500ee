//! A person's machine: a shell, or one command.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{bail, ensure, Result};
use rustix::termios::{tcgetattr, tcgetwinsize, tcsetattr, OptionalActions, Termios};

use crate::artifacts::Artifacts;
use crate::guest::{Command, Status, Stream, Terminal};
use crate::qemu::Machine;
use crate::vm::{Builder, Vm, GIB, MIB};

/// The options of a person's machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The kernel: `stock` or `debug`.
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
                eprintln!(
                    "device {device}: vhost-device-hmm ctl {} points",
                    socket.display()
                );
            }
        }
        Ok(vm)
    }
}

/// Runs a command in a fresh machine, without a time limit, and prints its output. Returns its exit
/// status, or 128 plus the number of the signal that killed it, as a shell does.
///
/// # Errors
///
/// When the machine does not start, the command cannot be run, or the kernel or
/// the daemon complained.
pub fn run_command(artifacts: &Artifacts, settings: &Settings, command: &[String]) -> Result<i32> {
    ensure!(!command.is_empty(), "there is no command to run");
    let vm = settings.start(settings.builder(artifacts))?;
    let status = vm
        .spawn(Command::from(command).unlimited())?
        .stream(|stream, bytes| {
            // The reader of our output may have gone; that is no error.
            let _ = match stream {
                Stream::Output => write_all(&mut io::stdout(), bytes),
                Stream::Error => write_all(&mut io::stderr(), bytes),
            };
        })?;
    vm.switch_off()?;
    Ok(match status {
        Status::Exited(status) => status,
        Status::Signalled(signal) => 128 + signal,
    })
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
    eprintln!("Starting a machine; leave its shell with `exit`.");
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
