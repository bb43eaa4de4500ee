//! QEMU: its command line and its monitor.
//!
//! The configuration files of `qemu-configs/` describe the machine (`config` reads them); settings
//! that differ between machines are added here. It knows nothing of the guest.

mod config;

use std::cell::Cell;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{anyhow, bail, ensure, Context, Result};
use hmm_agent::protocol::LINE_VARIABLE;
use qapi_spec::Dictionary;
use rustix::event::{poll, PollFd, PollFlags, Timespec};

use self::config::Config;
use crate::logs::{tail, Logs};
use crate::monitor::{
    Capability, Command as MonitorCommand, Continue, DeviceAdd, DeviceDel, Migrate,
    MigrateIncoming, MigrateSetCapabilities, Monitor, Stop,
};
use crate::pace::{Pace, ANSWER, BOOT, STATE, UNPLUG};
use crate::process::{Process, Terminal};

/// The kinds of machine that have configuration files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Machine {
    /// PCI; devices can be unplugged.
    #[default]
    Q35,
    /// virtio-mmio alone; no interrupt is shared.
    Microvm,
}

impl Machine {
    const fn base(self) -> &'static str {
        match self {
            Self::Q35 => "q35.cfg",
            Self::Microvm => "microvm.cfg",
        }
    }

    const fn agent(self) -> &'static str {
        match self {
            Self::Q35 => "agent-pci.cfg",
            Self::Microvm => "agent-mmio.cfg",
        }
    }

    const fn device(self) -> &'static str {
        match self {
            Self::Q35 => "hmm-pci.cfg",
            Self::Microvm => "hmm-mmio.cfg",
        }
    }

    /// The device by which the guest reaches a directory of the host.
    const fn share(self) -> &'static str {
        match self {
            Self::Q35 => "virtio-9p-pci",
            Self::Microvm => "virtio-9p-device",
        }
    }

    /// What the kernel must be told about the machine.
    ///
    /// # Errors
    ///
    /// When the host does not report the rate of its clock.
    pub fn kernel_arguments(self, accelerator: Accelerator) -> Result<String> {
        // The kernel panics if ten ticks of its timer take much longer than they should. On a busy
        // host those of an emulated timer do.
        let patient = " no_timer_check";
        let khz = match (self, accelerator) {
            (_, Accelerator::Kvm) => return Ok(String::new()),
            (Self::Q35, _) => return Ok(patient.to_owned()),
            (Self::Microvm, Accelerator::Tcg) => clock_khz()?,
            // It counts nanoseconds.
            (Self::Microvm, Accelerator::Icount) => 1_000_000,
        };
        Ok(format!("{patient} tsc_early_khz={khz}"))
    }
}

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The host's processors.
    Kvm,
    /// QEMU, by translation.
    Tcg,
    /// QEMU, one instruction after the other. The guest's clock counts them: two nanoseconds each.
    /// While all processors sleep, it shows the host's time.
    Icount,
}

impl Accelerator {
    /// The accelerator for a host where KVM works or not, unless instructions are to be counted.
    #[must_use]
    pub const fn new(kvm: bool, icount: bool) -> Self {
        match (icount, kvm) {
            (true, _) => Self::Icount,
            (false, true) => Self::Kvm,
            (false, false) => Self::Tcg,
        }
    }

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
            Self::Icount => "icount",
        }
    }
}

/// Where a guest's console goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Console {
    /// To the console's log.
    File,
    /// To the person's terminal and to the log.
    Terminal,
}

/// How the guest's first process is reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Agent {
    /// By a port of virtio-serial.
    #[default]
    Port,
    /// By a serial line. It is slower, but works again after its machine has slept.
    Line,
}

impl Agent {
    /// What the kernel must tell the guest's first process.
    #[must_use]
    pub fn kernel_arguments(self) -> String {
        match self {
            Self::Port => String::new(),
            Self::Line => format!(" {LINE_VARIABLE}=ttyS1"),
        }
    }
}

/// A directory of the host that the guest can mount.
#[derive(Clone, Copy, Debug)]
pub struct Share<'a> {
    /// What the guest calls it.
    pub name: &'a str,
    /// The directory.
    pub directory: &'a Path,
    /// Whether the guest can write to it, too.
    pub is_writable: bool,
}

/// How a machine begins.
#[derive(Clone, Copy, Debug)]
pub enum Beginning<'a> {
    /// Its kernel boots.
    Boot,
    /// Its kernel boots, without accelerators, and its agent finds nobody to greet.
    Origin,
    /// It continues from the state of such a machine, in this file, and its accelerators are plugged
    /// in before it does.
    From(&'a Path),
}

/// The machine to start.
#[derive(Debug)]
pub struct Settings<'a> {
    /// How it begins.
    pub beginning: Beginning<'a>,
    /// QEMU: a program and its leading arguments.
    pub program: &'a [String],
    /// The directory of the configuration files.
    pub configs: &'a Path,
    /// The kind of machine.
    pub machine: Machine,
    /// What executes the guest's instructions.
    pub accelerator: Accelerator,
    /// The number of processors.
    pub cpus: u32,
    /// The size of the guest's memory in bytes.
    pub memory: u64,
    /// The number of accelerators.
    pub devices: usize,
    /// How the guest's first process is reached.
    pub agent: Agent,
    /// The directories of the host that the guest can mount.
    pub shares: &'a [Share<'a>],
    /// Whether the machine does not begin before a debugger lets it.
    pub debugger: bool,
    /// The file of the guest's disk, if it has one. A disk needs PCI.
    pub disk: Option<&'a Path>,
    /// The kernel.
    pub kernel: &'a Path,
    /// The guest's files.
    pub initramfs: &'a Path,
    /// The kernel's command line.
    pub arguments: &'a str,
    /// The console.
    pub console: Console,
    /// More arguments for QEMU.
    pub more: &'a [String],
}

/// The name of the socket of a device's daemon, in the machine's directory.
#[must_use]
pub fn device_socket(device: usize) -> String {
    format!("hmm{device}.sock")
}

/// The name of the socket for a debugger, in the machine's directory.
pub const DEBUGGER_SOCKET: &str = "gdb.sock";

/// The monitor's name of a device.
#[must_use]
pub fn device_name(device: usize) -> String {
    format!("hmm{device}")
}

/// A running QEMU.
#[derive(Debug)]
pub struct Qemu {
    process: Process,
    monitor: Mutex<Monitor>,
    pace: Pace,
}

impl Qemu {
    /// Starts QEMU in `directory`, where the daemons' sockets are.
    ///
    /// Returns it and the connection to the guest's agent, which has not said
    /// anything yet.
    ///
    /// # Errors
    ///
    /// When QEMU cannot be started or refuses the machine; the text has its output.
    pub fn start(
        settings: &Settings<'_>,
        directory: &Path,
        logs: &Logs,
        pace: Pace,
    ) -> Result<(Self, UnixStream)> {
        let agent = listen(directory, "agent.sock")?;
        let (qemu, devices) = Self::launch(settings, directory, logs, pace)?;
        let begun = accept(&agent, &qemu.process, pace.scale(BOOT)).and_then(|agent| {
            if let Beginning::From(state) = settings.beginning {
                qemu.go_on(state, devices)?;
            }
            Ok(agent)
        });
        match begun {
            Ok(agent) => Ok((qemu, agent)),
            Err(error) => Err(qemu.failed_to_start(error, logs)),
        }
    }

    /// Boots a machine until its agent opens its port, and writes its state to a file.
    ///
    /// # Errors
    ///
    /// When QEMU cannot be started, refuses the machine or cannot write its state, and when the agent
    /// does not open its port; the text has QEMU's output.
    pub fn originate(
        settings: &Settings<'_>,
        directory: &Path,
        logs: &Logs,
        pace: Pace,
        state: &Path,
    ) -> Result<()> {
        let (qemu, _) = Self::launch(settings, directory, logs, pace)?;
        let opened = qemu
            .monitor()
            .wait_for("VSERPORT_CHANGE", pace.scale(BOOT), |data| {
                data.get("id").is_some_and(|id| *id == "agent")
                    && data.get("open").is_some_and(|open| *open == true)
            })
            .context("waiting for the guest's agent");
        let written = opened.and_then(|()| {
            qemu.execute(&Stop {})?;
            let uri = state_uri(state)?;
            qemu.transfer(|| qemu.execute(&Migrate { uri }).map(drop))
                .context("writing the machine's state")
        });
        written.map_err(|error| qemu.failed_to_start(error, logs))
    }

    /// Starts it and greets its monitor. Returns the devices that are to be plugged in, too.
    fn launch(
        settings: &Settings<'_>,
        directory: &Path,
        logs: &Logs,
        pace: Pace,
    ) -> Result<(Self, Vec<DeviceAdd>)> {
        let monitor = listen(directory, "monitor.sock")?;
        let (arguments, devices) = arguments(settings, directory, logs)?;
        let (program, leading) = settings
            .program
            .split_first()
            .context("the manifest names no QEMU")?;
        let mut command = Command::new(program);
        command
            .args(leading)
            .args(&arguments)
            .current_dir(directory);
        record(&command, directory, logs)?;
        let terminal = match settings.console {
            Console::File => {
                command.stdin(Stdio::null()).stdout(Stdio::null());
                Terminal::Apart
            }
            Console::Terminal => Terminal::Shared,
        };
        let output = File::create(logs.qemu()).context("creating QEMU's log")?;
        command.stderr(output);
        let process = Process::start(command, terminal)?;
        let greeted = accept(&monitor, &process, pace.scale(BOOT))
            .and_then(|monitor| Monitor::greet(monitor, pace.scale(ANSWER)));
        match greeted {
            Ok(monitor) => {
                let qemu = Self {
                    process,
                    monitor: Mutex::new(monitor),
                    pace,
                };
                Ok((qemu, devices))
            }
            Err(error) => Err(failed_to_start(&process, error, logs)),
        }
    }

    fn failed_to_start(&self, error: anyhow::Error, logs: &Logs) -> anyhow::Error {
        failed_to_start(&self.process, error, logs)
    }

    /// Lets a machine go on from a state, with these devices.
    fn go_on(&self, state: &Path, devices: Vec<DeviceAdd>) -> Result<()> {
        let uri = state_uri(state)?;
        self.transfer(|| self.execute(&MigrateIncoming { uri }).map(drop))
            .context("reading the machine's state")?;
        for device in devices {
            self.execute(&device)?;
        }
        self.execute(&Continue {})?;
        Ok(())
    }

    /// Begins to write or read a state, and waits for the end.
    fn transfer(&self, begin: impl FnOnce() -> Result<()>) -> Result<()> {
        self.execute(&MigrateSetCapabilities {
            capabilities: vec![Capability {
                capability: "events",
                state: true,
            }],
        })?;
        begin()?;
        let has_failed = Cell::new(false);
        let is_over = |data: &Dictionary| {
            let is = |status| data.get("status").is_some_and(|other| *other == status);
            has_failed.set(is("failed"));
            is("completed") || is("failed")
        };
        self.monitor()
            .wait_for("MIGRATION", self.pace.scale(STATE), is_over)?;
        ensure!(!has_failed.get(), "QEMU failed");
        Ok(())
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<ExitStatus> {
        self.process.ended()
    }

    /// Waits until it ends; `None` when `limit` passes first.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        self.process.wait(limit)
    }

    /// Kills it.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Waits until a debugger lets a machine go on that was started for one.
    ///
    /// # Errors
    ///
    /// When the machine ends first.
    pub fn wait_for_debugger(&self) -> Result<()> {
        self.monitor()
            .wait_for("RESUME", self.pace.scale(BOOT), |_| true)
            .context("waiting for a debugger")
    }

    /// Executes a command of the monitor.
    ///
    /// # Errors
    ///
    /// When QEMU refuses it or does not answer.
    pub fn execute<C: MonitorCommand>(&self, command: &C) -> Result<C::Ok> {
        self.monitor().execute(command)
    }

    fn monitor(&self) -> MutexGuard<'_, Monitor> {
        self.monitor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unplugs a device and waits until the guest has released it.
    ///
    /// # Errors
    ///
    /// When the machine cannot unplug or the guest does not release the device in time.
    pub fn unplug(&self, device: usize) -> Result<()> {
        let name = device_name(device);
        let mut monitor = self.monitor();
        monitor.execute(&DeviceDel { id: name.clone() })?;
        monitor
            .wait_for("DEVICE_DELETED", self.pace.scale(UNPLUG), |data| {
                data.get("device").is_some_and(|device| *device == name)
            })
            .with_context(|| format!("{name} was not unplugged"))
    }
}

/// The rate of the processor's clock, which an emulated processor also shows its guest.
///
/// A microvm has no other clock to calibrate it, and without KVM the guest is not told the rate:
/// its kernel would wait for ever for the first timer interrupt.
fn clock_khz() -> Result<u64> {
    const SOURCE: &str = "/proc/cpuinfo";
    let text = fs::read_to_string(SOURCE).with_context(|| format!("reading {SOURCE}"))?;
    text.lines()
        .find_map(|line| line.strip_prefix("cpu MHz"))
        .and_then(|rest| rest.trim_start_matches([' ', '\t', ':']).split_once('.'))
        .and_then(|(mhz, thousandths)| {
            let khz: u64 = thousandths.get(..3)?.parse().ok()?;
            Some(mhz.parse::<u64>().ok()? * 1000 + khz)
        })
        .with_context(|| format!("{SOURCE} does not tell the processor's clock rate"))
}

fn listen(directory: &Path, name: &str) -> Result<UnixListener> {
    let path = directory.join(name);
    UnixListener::bind(&path).with_context(|| format!("listening on {}", path.display()))
}

/// Accepts QEMU's connection, unless QEMU ends first.
fn accept(listener: &UnixListener, process: &Process, limit: Duration) -> Result<UnixStream> {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut sources = [
            PollFd::new(listener, PollFlags::IN),
            PollFd::new(process, PollFlags::IN),
        ];
        let timeout = Timespec::try_from(left)?;
        match poll(&mut sources, Some(&timeout)) {
            Ok(0) => bail!("it did not connect to its sockets within {limit:?}"),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
            Ok(_) if sources[0].revents().is_empty() => {
                let end = process.wait(limit);
                bail!(
                    "it ended: {}",
                    end.map_or_else(|| "unknown status".to_owned(), |end| end.to_string())
                )
            }
            Ok(_) => return Ok(listener.accept()?.0),
        }
    }
}

/// The arguments, and the devices that are to be plugged in when the machine has its state.
fn arguments(
    settings: &Settings<'_>,
    directory: &Path,
    logs: &Logs,
) -> Result<(Vec<OsString>, Vec<DeviceAdd>)> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut devices = Vec::new();
    // The files come first: later arguments take precedence over them.
    let mut config = |path: PathBuf| {
        arguments.push("-readconfig".into());
        arguments.push(path.into());
    };
    config(settings.configs.join(settings.machine.base()));
    config(settings.configs.join(match settings.agent {
        Agent::Port => settings.machine.agent(),
        Agent::Line => "agent-serial.cfg",
    }));
    for device in 0..settings.devices {
        let first = settings.configs.join(settings.machine.device());
        let mut wanted = device_config(&first, device)?;
        let name = device_name(device);
        match settings.beginning {
            Beginning::Boot if device == 0 => {
                config(first);
                continue;
            }
            Beginning::Boot => {}
            Beginning::Origin => wanted.retain(|section| section.name != name),
            Beginning::From(_) => {
                let device = wanted.take_device(&name);
                devices.extend(device.map(|device| DeviceAdd {
                    arguments: device.arguments(),
                }));
            }
        }
        let path = directory.join(format!("{name}.cfg"));
        fs::write(&path, wanted.to_string())
            .with_context(|| format!("writing {}", path.display()))?;
        config(path);
    }
    let mut add = |words: &[&str]| arguments.extend(words.iter().map(OsString::from));
    add(&["-nodefaults", "-no-user-config", "-display", "none"]);
    // A guest that panics asks for a reboot; with this option QEMU ends instead.
    add(&["-no-reboot"]);
    match settings.beginning {
        Beginning::Boot => {}
        Beginning::Origin => {
            // The agent's port has no other end.
            add(&["-set", "chardev.agent.server=on"]);
            add(&["-set", "chardev.agent.wait=off"]);
        }
        Beginning::From(_) => add(&["-S", "-incoming", "defer"]),
    }
    match settings.accelerator {
        Accelerator::Kvm => add(&["-accel", "kvm", "-cpu", "host"]),
        Accelerator::Tcg => add(&["-accel", "tcg,thread=multi,tb-size=512"]),
        Accelerator::Icount => {
            add(&["-accel", "tcg,thread=single,tb-size=512"]);
            add(&["-icount", "shift=1"]);
        }
    }
    if settings.accelerator != Accelerator::Kvm {
        // QEMU emulates string instructions byte by byte. If the processor advertises them as fast,
        // the kernel clears memory seven times more slowly.
        add(&["-cpu", "max,erms=off,fsrm=off"]);
    }
    let memory = settings.memory;
    add(&["-smp", &settings.cpus.to_string()]);
    add(&["-m", &format!("{memory}B")]);
    add(&[
        "-object",
        &format!("memory-backend-memfd,id=ram,size={memory},share=on"),
    ]);
    if let Some(disk) = settings.disk {
        let disk = escaped(disk)?;
        add(&["-drive", &format!("file={disk},if=none,id=disk,format=raw")]);
        add(&["-device", "virtio-blk-pci,drive=disk"]);
    }
    for share in settings.shares {
        let (name, directory) = (share.name, escaped(share.directory)?);
        let readonly = if share.is_writable { "off" } else { "on" };
        // Files belong to the user that runs QEMU, whatever the guest's root asks for.
        add(&[
            "-fsdev",
            &format!("local,id={name},path={directory},security_model=none,readonly={readonly}"),
            "-device",
            &format!("{},fsdev={name},mount_tag={name}", settings.machine.share()),
        ]);
    }
    if settings.debugger {
        let socket = format!("unix:{DEBUGGER_SOCKET},server=on,wait=off");
        add(&["-S", "-gdb", &socket]);
    }
    let log = escaped(&logs.console())?;
    match settings.console {
        Console::File => add(&["-chardev", &format!("file,id=console,path={log}")]),
        // Without signal=off ^C would end QEMU instead of the guest's program.
        Console::Terminal => add(&[
            "-chardev",
            &format!("stdio,id=console,signal=off,logfile={log}"),
        ]),
    }
    add(&["-serial", "chardev:console"]);
    add(&["-append", settings.arguments]);
    arguments.extend(["-kernel".into(), settings.kernel.into()]);
    arguments.extend(["-initrd".into(), settings.initramfs.into()]);
    arguments.extend(settings.more.iter().map(OsString::from));
    Ok((arguments, devices))
}

/// The configuration of one device: that of the first one with the numbers counted up.
fn device_config(first: &Path, device: usize) -> Result<Config> {
    let port = format!("port{device}");
    let config = Config::read(first)?.renamed(|text| {
        text.replace("hmm0", &device_name(device))
            .replace("port0", &port)
    });
    Ok(config.with(&port, "chassis", (device + 1).to_string()))
}

/// What the monitor calls the file of a state.
fn state_uri(state: &Path) -> Result<String> {
    let path = state.to_str();
    let path = path.with_context(|| format!("QEMU cannot be told of {}", state.display()))?;
    Ok(format!("file:{path}"))
}

/// Ends a QEMU that did not start, and adds what it printed to the reason.
fn failed_to_start(process: &Process, error: anyhow::Error, logs: &Logs) -> anyhow::Error {
    // Its last lines must be in the log before they are quoted.
    process.kill();
    error.context(format!(
        "QEMU did not start; it printed\n{}",
        tail(&logs.qemu())
    ))
}

/// A path as a value in one of QEMU's option lists.
fn escaped(path: &Path) -> Result<String> {
    Ok(path
        .to_str()
        .ok_or_else(|| anyhow!("QEMU cannot be told of {}", path.display()))?
        .replace(',', ",,"))
}

/// Keeps the command, so that a person can repeat it.
fn record(command: &Command, directory: &Path, logs: &Logs) -> Result<()> {
    let quoted =
        |word: &std::ffi::OsStr| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''"));
    let mut script = format!(
        "#!/bin/sh\n# In a directory with the sockets that the files name.\n# It was {}.\nexec {}",
        directory.display(),
        quoted(command.get_program())
    );
    for argument in command.get_args() {
        write!(script, " \\\n  {}", quoted(argument))?;
    }
    script.push('\n');
    let path = logs.command();
    fs::write(&path, script).with_context(|| format!("writing {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_hmm_spec::wire::{self, config::Config};

    fn config(name: &str) -> String {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../qemu-configs");
        fs::read_to_string(directory.join(name)).unwrap()
    }

    #[test]
    fn the_configuration_files_say_what_the_specification_says() {
        for name in ["hmm-pci.cfg", "hmm-mmio.cfg"] {
            let config = config(name);
            for (key, value) in [
                ("virtio-id", usize::try_from(wire::DEVICE_ID).unwrap()),
                ("num_vqs", wire::QUEUE_COUNT),
                ("config_size", size_of::<Config>()),
            ] {
                let line = format!("{key} = \"{value}\"\n");
                assert!(config.contains(&line), "{name} should have {line}");
            }
        }
    }

    #[test]
    fn every_device_has_names_of_its_own() {
        let configs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../qemu-configs");
        let text = device_config(&configs.join("hmm-pci.cfg"), 2).unwrap();
        let text = text.to_string();
        for part in [
            "[device \"hmm2\"]",
            "[device \"port2\"]",
            "bus = \"port2\"",
            "path = \"hmm2.sock\"",
            "chassis = \"3\"",
        ] {
            assert!(text.contains(part), "{part} is missing in\n{text}");
        }
        assert!(!text.contains("hmm0") && !text.contains("port0"), "{text}");
    }
}
