//! Describes a machine and puts it together.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{ensure, Context, Result};
use hmm_cli::{remark, size};
use tempfile::TempDir;

use super::mounts::Mounts;
use super::origin::{self, Origin};
use super::slot::Slot;
use super::{default_kernel, Vm, GIB, LEAST_MEMORY};
use crate::artifacts::{Artifacts, Kernel};
use crate::daemon::{self, Daemon};
use crate::guest::{self, Command, Guest};
use crate::initramfs::{Contents, DRIVER};
use crate::logs::Logs;
use crate::pace::{self, Pace};
use crate::qemu::{
    device_socket, Accelerator, Agent, Beginning, Console, Machine, Qemu, Settings, Share,
    DEBUGGER_SOCKET,
};

/// Waits until the guest's kernel has found a virtio device with the number `$1`.
const WAIT_FOR_DEVICE: &str = r#"until grep -qx "$1" /sys/bus/virtio/devices/*/device
    do sleep 0.02; done"#;

/// With this option a kernel looks for leaks.
const LEAKS: &str = "DEBUG_KMEMLEAK";

/// The description of a machine.
#[derive(Clone, Debug)]
pub struct Builder<'a> {
    artifacts: &'a Artifacts,
    name: String,
    kernel: String,
    machine: Machine,
    memory: u64,
    cpus: u32,
    icount: bool,
    devices: usize,
    coherent_devices: usize,
    agent: Agent,
    disk: u64,
    share: Option<PathBuf>,
    userland: bool,
    debugger: bool,
    trace: bool,
    daemon: daemon::Settings,
    rules: Vec<(Option<usize>, String)>,
    files: Vec<PathBuf>,
    arguments: String,
    leak_check: bool,
    driver: bool,
    parameters: String,
    console: Console,
    qemu_arguments: Vec<String>,
    boots: bool,
}

impl<'a> Builder<'a> {
    pub(super) fn new(artifacts: &'a Artifacts) -> Self {
        Self {
            artifacts,
            name: thread::current().name().unwrap_or("vm").to_owned(),
            kernel: default_kernel(),
            machine: Machine::default(),
            memory: GIB,
            cpus: 2,
            icount: false,
            devices: 1,
            coherent_devices: 0,
            agent: Agent::Port,
            disk: 0,
            share: None,
            userland: false,
            debugger: false,
            trace: false,
            daemon: daemon::Settings::default(),
            rules: Vec::new(),
            files: Vec::new(),
            arguments: String::new(),
            leak_check: false,
            driver: true,
            parameters: String::new(),
            console: Console::File,
            qemu_arguments: Vec::new(),
            boots: false,
        }
    }

    /// Names the machine's logs; by default they have the thread's name, which in a test is the
    /// name of the test.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Chooses the kernel by its name among the artifacts: `stock`, `debug`, or the release of one
    /// that the user has built. By default it is [`default_kernel`].
    #[must_use]
    pub fn kernel(mut self, name: impl Into<String>) -> Self {
        self.kernel = name.into();
        self
    }

    /// Chooses the kind of machine.
    #[must_use]
    pub fn machine(mut self, machine: Machine) -> Self {
        self.machine = machine;
        self
    }

    /// Sets the size of the guest's memory in bytes; 1 GiB by default.
    #[must_use]
    pub fn memory(mut self, bytes: u64) -> Self {
        self.memory = bytes;
        self
    }

    /// Sets the number of the guest's processors; 2 by default.
    #[must_use]
    pub fn cpus(mut self, cpus: u32) -> Self {
        self.cpus = cpus;
        self
    }

    /// Lets the guest's clock count instructions instead of time, and gives the guest one
    /// processor: its measurements then hardly depend on the load of the host.
    #[must_use]
    pub fn icount(mut self) -> Self {
        self.icount = true;
        self.cpus = 1;
        self
    }

    /// Sets the number of accelerators with private memory; 1 by default.
    #[must_use]
    pub fn devices(mut self, devices: usize) -> Self {
        self.devices = devices;
        self
    }

    /// Sets the number of accelerators with coherent memory, which come after the others in the
    /// guest; none by default. They need PCI, and a size that is a power of two.
    #[must_use]
    pub fn coherent_devices(mut self, devices: usize) -> Self {
        self.coherent_devices = devices;
        self
    }

    /// Chooses how the guest's first process is reached.
    #[must_use]
    pub fn agent(mut self, agent: Agent) -> Self {
        self.agent = agent;
        self
    }

    /// Adds an empty disk of this size in bytes, `/dev/vda`; none by default. It needs PCI, and
    /// the debug kernel has no driver for it.
    #[must_use]
    pub fn disk(mut self, bytes: u64) -> Self {
        self.disk = bytes;
        self
    }

    /// Mounts this directory of the host at [`SHARED`](super::SHARED) in the guest, for reading and
    /// writing.
    #[must_use]
    pub fn share(mut self, directory: impl Into<PathBuf>) -> Self {
        self.share = Some(directory.into());
        self
    }

    /// Gives the guest the Debian programs of the artifacts, which it cannot change: `python3`,
    /// `sqlite3` and others are in its search path, and find their libraries. All else that belongs
    /// to them is below [`USERLAND`](super::USERLAND).
    #[must_use]
    pub fn userland(mut self) -> Self {
        self.userland = true;
        self
    }

    /// Lets the machine wait for a debugger before its first instruction, and prints how to start
    /// one. No limit of the fixture then ends in less than days.
    #[must_use]
    pub fn debugger(mut self) -> Self {
        self.debugger = true;
        self
    }

    /// Sets the size of each accelerator's memory in bytes; 256 MiB by default.
    #[must_use]
    pub fn device_memory(mut self, bytes: u64) -> Self {
        self.daemon.memory = bytes;
        self
    }

    /// Sets the number of each accelerator's engines.
    #[must_use]
    pub fn engines(mut self, engines: u32) -> Self {
        self.daemon.engines = Some(engines);
        self
    }

    /// Sets how much memory each accelerator has for page tables, in bytes.
    #[must_use]
    pub fn table_memory(mut self, bytes: u64) -> Self {
        self.daemon.table_memory = Some(bytes);
        self
    }

    /// Lets the daemons look for uses of stale translations and freed frames.
    #[must_use]
    pub fn check(mut self) -> Self {
        self.daemon.check = true;
        self
    }

    /// Lets a device be late or wrong on purpose, as the daemon's `--rule` takes it.
    #[must_use]
    pub fn rule(mut self, device: usize, rule: &str) -> Self {
        self.rules.push((Some(device), rule.to_owned()));
        self
    }

    /// Lets the daemons report another value of a field of the configuration space, as `--misreport`
    /// takes it.
    #[must_use]
    pub fn misreport(mut self, field: &str) -> Self {
        self.daemon.misreports.push(field.to_owned());
        self
    }

    /// Like [`rule`](Self::rule), for every device.
    #[must_use]
    pub fn rule_for_all(mut self, rule: &str) -> Self {
        self.rules.push((None, rule.to_owned()));
        self
    }

    /// Lets the kernel look for leaks at the end, if it was built to. This makes the machine half
    /// as fast.
    #[must_use]
    pub fn leak_check(mut self) -> Self {
        self.leak_check = true;
        self
    }

    /// Sets what the daemons log: `info` by default.
    #[must_use]
    pub fn daemon_log(mut self, level: impl Into<String>) -> Self {
        self.daemon.log = level.into();
        self
    }

    /// Lets the daemons trace what their devices do; see [`Logs::trace`].
    #[must_use]
    pub fn trace(mut self) -> Self {
        self.trace = true;
        self
    }

    /// Puts a file of the host into the guest's `/root`.
    #[must_use]
    pub fn file(mut self, host_path: impl Into<PathBuf>) -> Self {
        self.files.push(host_path.into());
        self
    }

    /// Adds to the kernel's command line.
    #[must_use]
    pub fn kernel_argument(mut self, argument: &str) -> Self {
        self.arguments.push(' ');
        self.arguments.push_str(argument);
        self
    }

    /// Adds arguments to QEMU's command line.
    #[must_use]
    pub fn qemu_arguments(mut self, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned());
        self.qemu_arguments.extend(arguments);
        self
    }

    /// Adds a parameter of the driver, such as `dmirror=1`.
    #[must_use]
    pub fn module_parameter(mut self, parameter: &str) -> Self {
        if !self.parameters.is_empty() {
            self.parameters.push(' ');
        }
        self.parameters.push_str(parameter);
        self
    }

    /// Leaves it to the test to load the driver.
    #[must_use]
    pub fn without_driver(mut self) -> Self {
        self.driver = false;
        self
    }

    /// Lets the machine boot, with its devices in it from the first instruction on. Others may go on
    /// from where the first one of their kind had booted, and their devices are plugged in then.
    #[must_use]
    pub fn booted(mut self) -> Self {
        self.boots = true;
        self
    }

    /// Connects the guest's console to the person's terminal.
    #[must_use]
    pub fn on_terminal(mut self) -> Self {
        self.console = Console::Terminal;
        self
    }

    /// Starts the machine: daemons, QEMU, kernel, driver.
    ///
    /// It waits while as many machines run as the host can bear.
    ///
    /// # Errors
    ///
    /// When any part does not start; the text says which, why and where its log is.
    pub fn start(self) -> Result<Vm> {
        ensure!(
            self.memory >= LEAST_MEMORY,
            "a guest needs at least {} of memory, and not {}",
            size::write(LEAST_MEMORY),
            size::write(self.memory)
        );
        let kernel = self.artifacts.kernels.get(&self.kernel).with_context(|| {
            format!(
                "there is no {} kernel among the artifacts; prepare it with `cargo xtask`",
                self.kernel
            )
        })?;
        let options = kernel.options()?;
        let is_checking = kernel.checks_itself()?;
        let pace = match self.debugger {
            true => Pace::for_a_debugger(),
            false => Pace::new(self.accelerator() == Accelerator::Kvm, is_checking),
        };
        self.mounts()?
            .check(&options)
            .with_context(|| format!("the {} kernel", self.kernel))?;
        let looks_for_leaks = options.has(LEAKS);
        let start = || {
            let logs = Logs::create(&self.artifacts.logs, &self.name)?;
            let place = logs.directory().display().to_string();
            self.assemble(kernel, looks_for_leaks, &logs, pace, Slot::take())
                .with_context(|| format!("starting the machine; logs: {place}"))
        };
        match start() {
            Err(error) if self.accelerator() != Accelerator::Kvm && is_the_emulators(&error) => {
                remark!("starting the machine once more: {error:#}");
                start()
            }
            other => other,
        }
    }

    fn accelerator(&self) -> Accelerator {
        Accelerator::new(self.artifacts.kvm, self.icount)
    }

    /// The state from which the machine goes on, unless it boots.
    fn origin(&self, kernel: &Kernel, arguments: &str, pace: Pace) -> Result<Option<Arc<Origin>>> {
        let can_go_on = self.accelerator() == Accelerator::Tcg
            && self.machine == Machine::Q35
            // Several that are plugged in at a time come in any order.
            && self.devices <= 1
            // QEMU cannot write the state of such a machine, or it differs from others.
            && self.coherent_devices == 0
            && self.disk == 0
            && self.agent == Agent::Port
            && self.console == Console::File
            && self.qemu_arguments.is_empty()
            && !self.debugger;
        if self.boots || !can_go_on {
            return Ok(None);
        }
        let modules = self.modules(kernel)?;
        let contents = self.contents(kernel, &modules);
        let shares = self.mounts()?.shares();
        let kind = format!(
            "{:?} {contents:?} {arguments} {} {} {shares:?}",
            kernel.image, self.cpus, self.memory
        );
        let boot = |state: &Path, logs: &Logs| {
            let directory = directory()?;
            let initramfs = directory.path().join("initramfs");
            contents.write(&initramfs)?;
            let settings = Settings {
                beginning: Beginning::Origin,
                ..self.settings(kernel, &initramfs, None, &shares, arguments)
            };
            let place = logs.directory().display().to_string();
            Qemu::originate(&settings, directory.path(), logs, pace, state)
                .with_context(|| format!("booting a machine for others; logs: {place}"))
        };
        let write = |state: &Path| {
            let logs = Logs::create(&self.artifacts.logs, "origin")?;
            let Err(error) = boot(state, &logs) else {
                return Ok(());
            };
            let console = fs::read(logs.console()).unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            if !console.contains(BREAKPOINT) && console.contains(FIRST_PROCESS) {
                return Err(error);
            }
            remark!("starting the machine once more: {error:#}");
            boot(state, &Logs::create(&self.artifacts.logs, "origin")?)
        };
        origin::of(kind, &self.artifacts.logs, write).map(Some)
    }

    /// What is in the guest.
    fn contents<'c>(&'c self, kernel: &'c Kernel, modules: &'c [PathBuf]) -> Contents<'c> {
        let devices = self.devices + self.coherent_devices;
        Contents {
            agent: &self.artifacts.agent,
            busybox: &self.artifacts.busybox,
            // A machine without devices does not need the tools for them.
            hmm: Some(self.artifacts.hmm.as_path()).filter(|_| devices > 0),
            modules,
            driver: Some(kernel.driver.as_path()).filter(|_| devices > 0),
            files: &self.files,
        }
    }

    /// The modules of the kernel that the machine needs.
    fn modules(&self, kernel: &Kernel) -> Result<Vec<PathBuf>> {
        let mut modules = kernel.modules.clone();
        if !self.mounts()?.is_empty() {
            modules.extend(kernel.share_modules.iter().cloned());
        }
        Ok(modules)
    }

    /// The settings of a machine that boots.
    fn settings<'s>(
        &'s self,
        kernel: &'s Kernel,
        initramfs: &'s Path,
        disk: Option<&'s Path>,
        shares: &'s [Share<'s>],
        arguments: &'s str,
    ) -> Settings<'s> {
        Settings {
            beginning: Beginning::Boot,
            program: &self.artifacts.qemu,
            configs: &self.artifacts.qemu_configs,
            machine: self.machine,
            accelerator: self.accelerator(),
            cpus: self.cpus,
            memory: self.memory,
            devices: self.devices + self.coherent_devices,
            agent: self.agent,
            shares,
            debugger: self.debugger,
            disk,
            kernel: &kernel.image,
            initramfs,
            arguments,
            console: self.console,
            more: &self.qemu_arguments,
        }
    }

    fn assemble(
        &self,
        kernel: &Kernel,
        looks_for_leaks: bool,
        logs: &Logs,
        pace: Pace,
        slot: Slot,
    ) -> Result<Vm> {
        let devices = self.devices + self.coherent_devices;
        let driver = self.driver && devices > 0;
        let arguments = self.kernel_arguments(pace, looks_for_leaks)?;
        let origin = self.origin(kernel, &arguments, pace)?;
        let state = origin.as_ref().map(|origin| origin.path());
        let directory = directory()?;
        let initramfs = directory.path().join("initramfs");
        self.contents(kernel, &self.modules(kernel)?)
            .write(&initramfs)?;
        let daemons = (0..devices)
            .map(|device| {
                let settings = self.daemon_settings(device, logs);
                Daemon::start(
                    &self.artifacts.daemon,
                    &directory.path().join(device_socket(device)),
                    &settings,
                    &logs.daemon(device),
                    pace,
                )
            })
            .collect::<Result<Vec<_>>>()?;
        let disk = (self.disk > 0).then(|| directory.path().join("disk"));
        if let Some(disk) = &disk {
            let file = fs::File::create_new(disk).context("creating the disk")?;
            file.set_len(self.disk).context("creating the disk")?;
        }
        let mounts = self.mounts()?;
        let shares = mounts.shares();
        let settings = Settings {
            beginning: state.as_deref().map_or(Beginning::Boot, Beginning::From),
            ..self.settings(kernel, &initramfs, disk.as_deref(), &shares, &arguments)
        };
        let (qemu, agent) = Qemu::start(&settings, directory.path(), logs, pace)?;
        if self.debugger {
            let socket = directory.path().join(DEBUGGER_SOCKET);
            remark!("{}", invitation(&socket, kernel.vmlinux.as_deref()));
            qemu.wait_for_debugger()?;
        }
        let guest =
            Guest::greet(agent, logs, pace).map_err(|error| match qemu.wait(LAST_MOMENT) {
                Some(status) => error.context(Ended(status)),
                None => error,
            })?;
        // QEMU has read it into the guest's memory, and it should not stay behind if we are killed.
        fs::remove_file(&initramfs).context("removing the initramfs")?;
        let vm = Vm {
            guest,
            qemu,
            daemons,
            driver,
            leak_check: self.leak_check,
            logs: logs.clone(),
            pace,
            finished: false,
            _directory: directory,
            _slot: slot,
        };
        ensure!(
            vm.guest.release() == kernel.release,
            "the guest runs {} instead of {}",
            vm.guest.release(),
            kernel.release
        );
        mounts.mount(&vm)?;
        if origin.is_some() && devices > 0 {
            let number = format!("{:#06x}", virtio_hmm_spec::wire::DEVICE_ID);
            let wait = Command::new("sh").arguments(["-c", WAIT_FOR_DEVICE, "sh", &number]);
            vm.run(wait)?
                .succeeded()
                .context("waiting for the device")?;
        }
        if driver {
            vm.guest
                .load_module(DRIVER, &self.parameters, pace::DRIVER)?;
        }
        Ok(vm)
    }

    fn mounts(&self) -> Result<Mounts<'_>> {
        let userland = self.artifacts.userland.as_deref();
        ensure!(
            !self.userland || userland.is_some(),
            "there are no Debian programs among the artifacts"
        );
        Ok(Mounts {
            share: self.share.as_deref(),
            userland: userland.filter(|_| self.userland),
        })
    }

    fn daemon_settings(&self, device: usize, logs: &Logs) -> daemon::Settings {
        let mine = |which: &Option<usize>| which.is_none_or(|which| which == device);
        let mine = self.rules.iter().filter(|(which, _)| mine(which));
        daemon::Settings {
            rules: mine.map(|(_, rule)| rule.clone()).collect(),
            coherent: device >= self.devices,
            trace: self.trace.then(|| logs.trace(device)),
            ..self.daemon.clone()
        }
    }

    fn kernel_arguments(&self, pace: Pace, looks_for_leaks: bool) -> Result<String> {
        let console = match self.console {
            Console::File => "console=ttyS0",
            // The person sees serious messages; the log has the rest.
            Console::Terminal => "console=ttyS0 quiet loglevel=4",
        };
        Ok(format!(
            // panic=-1: a panic is a reboot, and a reboot ends QEMU. printk.devkmsg=on: the agent's
            // lines are not rate limited. log_buf_len: nothing is overwritten before it is read.
            // notests: the kernel's tests of its ciphers do not concern us. no_console_suspend: a
            // panic in the middle of a suspend is shown, too.
            "{console}{} panic=-1 printk.devkmsg=on log_buf_len=4M cryptomgr.notests=1 \
             no_console_suspend sysctl.kernel.hung_task_timeout_secs={} \
             rcupdate.rcu_cpu_stall_timeout={}{}{}{}{}",
            // Otherwise the addresses are not those of the symbols.
            if self.debugger { " nokaslr" } else { "" },
            pace.hung_task_seconds(),
            pace.stall_seconds(),
            if looks_for_leaks && !self.leak_check {
                " kmemleak=off"
            } else {
                ""
            },
            self.machine.kernel_arguments(self.accelerator())?,
            self.agent.kernel_arguments(),
            self.arguments
        ))
    }
}

/// A directory for a machine.
fn directory() -> Result<TempDir> {
    // Short, because the path of a socket has at most 107 bytes.
    tempfile::Builder::new()
        .prefix("hmm-")
        .tempdir()
        .context("creating a directory for the machine")
}

/// How to start the debugger that a machine waits for.
fn invitation(socket: &Path, vmlinux: Option<&Path>) -> String {
    let quoted = |path: &Path| format!("'{}'", path.display().to_string().replace('\'', r"'\''"));
    let (symbols, note) = match vmlinux {
        Some(vmlinux) => (format!(" {}", quoted(vmlinux)), ""),
        None => (
            String::new(),
            "\nThis kernel's vmlinux, which has its symbols, is not here.",
        ),
    };
    format!(
        "The machine waits for a debugger:\n    gdb{symbols} -ex 'set architecture i386:x86-64' \
         -ex {} -ex continue{note}",
        quoted(Path::new(&format!("target remote {}", socket.display())))
    )
}

/// QEMU closes its connections a moment before it has ended.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// QEMU has ended before the guest greeted.
#[derive(Debug, thiserror::Error)]
#[error("QEMU ended with {0}")]
struct Ended(ExitStatus);

/// What the console shows if the guest's kernel has died at a breakpoint of its own.
const BREAKPOINT: &str = "Oops: int3";

/// What it shows before the first process begins.
const FIRST_PROCESS: &str = "Run /init";

/// Whether the guest's kernel died or hung, by a fault of an emulated processor, before it ran
/// anything of ours. This happens once in some hundred boots. A fault of ours would happen again
/// when the machine is started once more.
///
/// While a kernel changes its own code it puts breakpoints there, and removes them when all
/// processors have seen the change. QEMU's processors, which are threads, can hit a breakpoint that
/// is already removed. Some other boots end without a message while the kernel sets up the machine:
/// they hang, or start anew, which ends QEMU. A QEMU that fails or is killed is another matter.
fn is_the_emulators(error: &anyhow::Error) -> bool {
    if matches!(error.downcast_ref(), Some(Ended(status)) if !status.success()) {
        return false;
    }
    error.chain().any(|cause| match cause.downcast_ref() {
        Some(guest::Error::Gone { doing, console, .. }) => {
            let is_early = !console.contains(FIRST_PROCESS);
            doing == guest::BOOTING && (is_early || console.contains(BREAKPOINT))
        }
        Some(guest::Error::TimedOut { doing, seen, .. }) => {
            doing == guest::BOOTING && !seen.contains(FIRST_PROCESS)
        }
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn the_command_of_a_debugger_has_the_symbols_if_they_are_there() {
        let socket = Path::new("/tmp/hmm-1/gdb.sock");
        let text = invitation(socket, Some(Path::new("/build/it's/vmlinux")));
        assert!(text.contains(r"gdb '/build/it'\''s/vmlinux' -ex"), "{text}");
        assert!(
            text.contains("-ex 'target remote /tmp/hmm-1/gdb.sock' -ex continue"),
            "{text}"
        );
        let text = invitation(socket, None);
        assert!(
            text.contains("    gdb -ex") && text.contains("not here"),
            "{text}"
        );
    }

    /// A guest that is gone while it boots, with this on its console.
    fn gone(console: &str, ended: i32) -> anyhow::Error {
        let gone = guest::Error::Gone {
            doing: guest::BOOTING.to_owned(),
            why: String::new(),
            console: console.to_owned(),
            logs: PathBuf::new(),
        };
        anyhow::Error::from(gone)
            .context(Ended(ExitStatus::from_raw(ended)))
            .context("starting the machine")
    }

    #[test]
    fn a_machine_that_starts_anew_before_its_first_process_is_started_once_more() {
        assert!(is_the_emulators(&gone("    nothing", 0)));
        assert!(is_the_emulators(&gone(
            "Run /init as init process\nOops: int3: 0000",
            0
        )));
        assert!(!is_the_emulators(&gone("Run /init as init process", 0)));
        let killed = gone("    nothing", 9);
        assert!(!is_the_emulators(&killed));
        assert!(format!("{killed:#}").contains("QEMU ended with signal: 9"));
    }
}
