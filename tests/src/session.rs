//! The machine of a person: a shell, or one command.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::{bail, ensure, Result};
use rustix::termios::{tcgetattr, tcgetwinsize, tcsetattr, OptionalActions, Termios};

use crate::artifacts::Artifacts;
use crate::guest::{Command, Status, Stream, Terminal};
use crate::vm::{Builder, Vm, GIB, MIB};

/// What a person can choose.
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
    /// The number of devices with coherent memory, which come after these.
    pub coherent_devices: usize,
    /// Files for the guest's `/root`.
    pub files: Vec<PathBuf>,
    /// What the driver is loaded with, such as `dmirror=1`.
    pub module_parameters: Vec<String>,
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
            .coherent_devices(self.coherent_devices);
        let machine = self.files.iter().fold(machine, Builder::file);
        self.module_parameters
            .iter()
            .fold(machine, |machine, parameter| {
                machine.module_parameter(parameter)
            })
    }
}

/// Runs a command in a fresh machine, without a limit in time, and prints what it
/// prints. Returns its exit status, or 128 and the number of the signal that killed
/// it, as a shell does.
///
/// # Errors
///
/// When the machine does not start, the command cannot be run, or the kernel or
/// the daemon complained.
pub fn run_command(artifacts: &Artifacts, settings: &Settings, command: &[String]) -> Result<i32> {
    ensure!(!command.is_empty(), "there is no command to run");
    let vm = settings.builder(artifacts).start()?;
    let status = vm
        .spawn(Command::from(command).unlimited())?
        .stream(|stream, bytes| {
            // Whoever stopped reading does not want to be told.
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

/// Gives the person a shell in a fresh machine, until it is left.
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
    let vm = settings.builder(artifacts).on_terminal().start()?;
    let terminal = Terminal {
        kind: std::env::var("TERM").unwrap_or_else(|_| "linux".to_owned()),
        rows: size.ws_row,
        columns: size.ws_col,
    };
    vm.guest().shell(terminal)?.wait()?;
    vm.switch_off()
}

/// Gives the terminal its modes back: QEMU cannot, if it is killed.
struct TerminalModes(Termios);

impl TerminalModes {
    fn keep() -> Result<Self> {
        Ok(Self(tcgetattr(io::stdin())?))
    }
}

impl Drop for TerminalModes {
    fn drop(&mut self) {
        // There is nothing to be done if the terminal is gone.
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.0);
    }
}

fn write_all(to: &mut impl Write, bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes)?;
    to.flush()
}
