//! A machine with its devices, from start to finish.
//!
//! It puts a machine together from the artifacts, and takes it apart again with
//! every check that must hold at the end. What the parts do is theirs.

use std::path::PathBuf;
use std::sync::{Condvar, Mutex, PoisonError};
use std::thread;

use anyhow::{bail, ensure, Context, Result};
use tempfile::TempDir;

use crate::artifacts::{Artifacts, Kernel};
use crate::daemon::{self, Daemon};
use crate::guest::{self, Command, Guest, Output, Record, Running};
use crate::initramfs::{Contents, DRIVER};
use crate::klog::{judge_console, Complaint};
use crate::logs::{tail, Logs};
use crate::pace::{self, Pace};
use crate::qemu::{device_socket, Console, Machine, Qemu, Settings};

/// One mebibyte.
pub const MIB: u64 = 1 << 20;

/// One gibibyte.
pub const GIB: u64 = 1 << 30;

/// The environment variable that names the kernel of machines that do not choose.
pub const KERNEL_VARIABLE: &str = "VIRTIO_HMM_KERNEL";

/// The kernel of machines that nobody chose one for.
const STOCK: &str = "stock";

/// The name of our driver among the guest's modules.
pub const DRIVER_NAME: &str = "virtio_hmm";

/// How many machines run at a time: each keeps two processors of the host busy
/// while it boots, and more of them would only wait for each other.
const MAX_MACHINES: usize = 2;

/// Where the guest's kernel reports leaks, if it looks for them.
const LEAKS: &str = "/sys/kernel/debug/kmemleak";

/// What machine is wanted.
#[derive(Clone, Debug)]
pub struct Builder<'a> {
    artifacts: &'a Artifacts,
    name: String,
    kernel: String,
    machine: Machine,
    memory: u64,
    cpus: u32,
    devices: usize,
    daemon: daemon::Settings,
    files: Vec<PathBuf>,
    arguments: String,
    driver: bool,
    console: Console,
}

impl<'a> Builder<'a> {
    /// Names the machine's logs; by default, the thread names them, which in a test
    /// has the name of the test.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Chooses the kernel: `stock` or `debug`. By default it is the one that
    /// [`KERNEL_VARIABLE`] names, else the stock kernel.
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

    /// Sets the number of accelerators; 1 by default.
    #[must_use]
    pub fn devices(mut self, devices: usize) -> Self {
        self.devices = devices;
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

    /// Lets the daemons look for uses of stale translations and freed frames.
    #[must_use]
    pub fn check(mut self) -> Self {
        self.daemon.check = true;
        self
    }

    /// Sets what the daemons log: `info` by default.
    #[must_use]
    pub fn daemon_log(mut self, level: impl Into<String>) -> Self {
        self.daemon.log = level.into();
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

    /// Leaves it to the test to load the driver.
    #[must_use]
    pub fn without_driver(mut self) -> Self {
        self.driver = false;
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
    /// It waits while [as many machines](MAX_MACHINES) as the host can bear run.
    ///
    /// # Errors
    ///
    /// When any part does not start; the text says which, why and where its log is.
    pub fn start(self) -> Result<Vm> {
        let kernel = self.artifacts.kernels.get(&self.kernel).with_context(|| {
            format!(
                "there is no {} kernel among the artifacts; prepare it with `cargo xtask`",
                self.kernel
            )
        })?;
        let logs = Logs::create(&self.artifacts.logs, &self.name)?;
        let pace = Pace::new(self.artifacts.kvm, self.kernel == "debug");
        let slot = Slot::take();
        self.assemble(kernel, &logs, pace, slot)
            .with_context(|| format!("starting the machine; logs: {}", logs.directory().display()))
    }

    fn assemble(&self, kernel: &Kernel, logs: &Logs, pace: Pace, slot: Slot) -> Result<Vm> {
        let driver = self.driver && self.devices > 0;
        // Short, because the path of a socket has at most 107 bytes.
        let directory = tempfile::Builder::new()
            .prefix("hmm-")
            .tempdir()
            .context("creating a directory for the machine")?;
        let initramfs = directory.path().join("initramfs");
        Contents {
            agent: &self.artifacts.agent,
            busybox: &self.artifacts.busybox,
            // A machine without devices can do without what serves them.
            hmm: Some(self.artifacts.hmm.as_path()).filter(|_| self.devices > 0),
            modules: &kernel.modules,
            driver: Some(kernel.driver.as_path()).filter(|_| self.devices > 0),
            files: &self.files,
        }
        .write(&initramfs)?;
        let daemons = (0..self.devices)
            .map(|device| {
                Daemon::start(
                    &self.artifacts.daemon,
                    &directory.path().join(device_socket(device)),
                    &self.daemon,
                    &logs.daemon(device),
                    pace,
                )
            })
            .collect::<Result<Vec<_>>>()?;
        let settings = Settings {
            program: &self.artifacts.qemu,
            configs: &self.artifacts.qemu_configs,
            machine: self.machine,
            kvm: self.artifacts.kvm,
            cpus: self.cpus,
            memory: self.memory,
            devices: self.devices,
            kernel: &kernel.image,
            initramfs: &initramfs,
            arguments: &self.kernel_arguments(pace)?,
            console: self.console,
        };
        let (qemu, agent) = Qemu::start(&settings, directory.path(), logs, pace)?;
        let vm = Vm {
            guest: Guest::greet(agent, logs, pace)?,
            qemu,
            daemons,
            driver,
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
        if driver {
            vm.guest.load_module(DRIVER, "", pace::DRIVER)?;
        }
        Ok(vm)
    }

    fn kernel_arguments(&self, pace: Pace) -> Result<String> {
        let console = match self.console {
            Console::File => "console=ttyS0",
            // The person sees what is serious; the log has the rest.
            Console::Terminal => "console=ttyS0 quiet loglevel=4",
        };
        Ok(format!(
            // panic=-1: a panic is a reboot, and a reboot the end of QEMU.
            // printk.devkmsg=on: what the agent logs is not rate limited.
            // log_buf_len: nothing is overwritten before it is read.
            "{console} panic=-1 printk.devkmsg=on log_buf_len=4M \
             sysctl.kernel.hung_task_timeout_secs={}{}{}",
            pace.hung_task_seconds(),
            self.machine.kernel_arguments(self.artifacts.kvm)?,
            self.arguments
        ))
    }
}

/// A running machine.
#[derive(Debug)]
pub struct Vm {
    // In this order when dropped: the guest's connection ends, QEMU is killed, then
    // the daemons, then their directory goes and the next machine may start.
    guest: Guest,
    qemu: Qemu,
    daemons: Vec<Daemon>,
    driver: bool,
    logs: Logs,
    pace: Pace,
    finished: bool,
    _directory: TempDir,
    _slot: Slot,
}

impl Vm {
    /// A machine with 2 processors, 1 GiB of memory and one
    /// accelerator of 256 MiB, unless it is told otherwise.
    #[must_use]
    pub fn builder(artifacts: &Artifacts) -> Builder<'_> {
        Builder {
            artifacts,
            name: thread::current().name().unwrap_or("vm").to_owned(),
            kernel: std::env::var(KERNEL_VARIABLE).unwrap_or_else(|_| STOCK.to_owned()),
            machine: Machine::default(),
            memory: GIB,
            cpus: 2,
            devices: 1,
            daemon: daemon::Settings::default(),
            files: Vec::new(),
            arguments: String::new(),
            driver: true,
            console: Console::File,
        }
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    ///
    /// As [`Guest::run`].
    pub fn run(&self, command: impl Into<Command>) -> guest::Result<Output> {
        self.guest.run(command)
    }

    /// Starts a program.
    ///
    /// # Errors
    ///
    /// As [`Guest::spawn`].
    pub fn spawn(&self, command: impl Into<Command>) -> guest::Result<Running<'_>> {
        self.guest.spawn(command)
    }

    /// The kernel log up to now.
    ///
    /// # Errors
    ///
    /// As [`Guest::kernel_log`].
    pub fn kernel_log(&self) -> guest::Result<Vec<Record>> {
        self.guest.kernel_log()
    }

    /// The guest.
    #[must_use]
    pub fn guest(&self) -> &Guest {
        &self.guest
    }

    /// QEMU.
    #[must_use]
    pub fn qemu(&self) -> &Qemu {
        &self.qemu
    }

    /// The daemon of a device.
    ///
    /// # Panics
    ///
    /// When there is no such device.
    #[must_use]
    pub fn daemon(&self, device: usize) -> &Daemon {
        &self.daemons[device]
    }

    /// Where the logs are.
    #[must_use]
    pub fn logs(&self) -> &Logs {
        &self.logs
    }

    /// How slow this machine is.
    #[must_use]
    pub fn pace(&self) -> Pace {
        self.pace
    }

    /// Loads the driver, on a machine that was started without it.
    ///
    /// # Errors
    ///
    /// As [`Guest::load_module`].
    pub fn load_driver(&mut self, parameters: &str) -> guest::Result<()> {
        self.guest.load_module(DRIVER, parameters, pace::DRIVER)?;
        self.driver = true;
        Ok(())
    }

    /// Unloads the driver.
    ///
    /// # Errors
    ///
    /// As [`Guest::unload_module`].
    pub fn unload_driver(&mut self) -> guest::Result<()> {
        self.guest.unload_module(DRIVER_NAME, pace::DRIVER)?;
        self.driver = false;
        Ok(())
    }

    /// Unloads the driver, switches off, stops the daemons and checks that nobody
    /// complained since the start.
    ///
    /// # Errors
    ///
    /// Everything that was wrong, and where the logs are.
    pub fn finish(mut self) -> Result<()> {
        let mut problems = Problems::default();
        if self.driver {
            problems.note(self.unload_driver());
        }
        self.end(problems)
    }

    /// Switches off with the driver loaded, and checks like [`finish`](Self::finish).
    ///
    /// # Errors
    ///
    /// As [`finish`](Self::finish).
    pub fn switch_off(self) -> Result<()> {
        self.end(Problems::default())
    }

    fn end(mut self, mut problems: Problems) -> Result<()> {
        self.finished = true;
        problems.note(self.look_for_leaks());
        match self.guest.complaints() {
            Ok(complaints) => problems.kernel(complaints),
            Err(error) => {
                problems.note::<()>(Err(error));
                problems.kernel(self.guest.known_complaints());
            }
        }
        problems.note(self.power_off());
        problems.kernel(self.console_complaints());
        for (device, daemon) in self.daemons.iter().enumerate() {
            problems.note(daemon.stop().with_context(|| format!("device {device}")));
            match daemon.complaints() {
                Ok(lines) => problems.lines(&format!("daemon {device}"), lines),
                Err(error) => problems.note::<()>(Err(error)),
            }
        }
        problems.report(&self.logs)
    }

    fn power_off(&self) -> Result<()> {
        // A guest that is gone already has been noted.
        if self.guest.power_off().is_err() && self.qemu.ended().is_none() {
            self.qemu.kill();
            return Ok(());
        }
        let limit = self.pace.scale(pace::POWER_OFF);
        match self.qemu.wait(limit) {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!(
                "QEMU failed: {status}; it printed\n{}",
                tail(&self.logs.qemu())
            ),
            None => bail!("the guest did not switch off within {limit:?}"),
        }
    }

    /// Lets the kernel look for leaks, if it can; it logs what it finds.
    fn look_for_leaks(&self) -> guest::Result<()> {
        match self.guest.write_file(LEAKS, "scan") {
            // The kernel was not built to look.
            Err(guest::Error::Refused { .. }) => Ok(()),
            other => other,
        }
    }

    /// What only the console shows, because the agent had no more time to tell.
    fn console_complaints(&self) -> Vec<Complaint> {
        let console = std::fs::read(self.logs.console()).unwrap_or_default();
        judge_console(
            &String::from_utf8_lossy(&console),
            hmm_agent::protocol::LOG_MARK,
        )
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if !self.finished {
            eprintln!(
                "a machine was not finished; its logs: {}",
                self.logs.directory().display()
            );
        }
    }
}

/// What was wrong with a machine.
#[derive(Debug, Default)]
struct Problems(Vec<String>);

impl Problems {
    fn note<T>(&mut self, result: Result<T, impl Into<anyhow::Error>>) {
        if let Err(error) = result {
            self.0.push(format!("{:#}", error.into()));
        }
    }

    fn kernel(&mut self, complaints: Vec<Complaint>) {
        self.lines(
            "guest kernel",
            complaints.into_iter().map(|complaint| complaint.line),
        );
    }

    fn lines(&mut self, who: &str, lines: impl IntoIterator<Item = String>) {
        for line in lines {
            // The kernel log and the console tell the same, one with the time.
            let known = self.0.iter().any(|problem| {
                problem
                    .strip_prefix(who)
                    .and_then(|problem| problem.strip_prefix(": "))
                    .is_some_and(|problem| line.ends_with(problem))
            });
            if !known {
                self.0.push(format!("{who}: {line}"));
            }
        }
    }

    fn report(self, logs: &Logs) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        bail!(
            "{}\nlogs: {}",
            self.0.join("\n"),
            logs.directory().display()
        )
    }
}

/// A place among the machines that may run.
#[derive(Debug)]
struct Slot;

static RUNNING: Mutex<usize> = Mutex::new(0);
static FREED: Condvar = Condvar::new();

impl Slot {
    fn take() -> Self {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let mut running = FREED
            .wait_while(running, |running| *running >= MAX_MACHINES)
            .unwrap_or_else(PoisonError::into_inner);
        *running += 1;
        Self
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        FREED.notify_one();
    }
}
