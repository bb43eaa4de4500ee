//! What machine is wanted, and how it is put together.

use std::fs;
use std::path::PathBuf;
use std::thread;

use anyhow::{ensure, Context, Result};

use super::slot::Slot;
use super::{default_kernel, Vm, GIB};
use crate::artifacts::{Artifacts, Kernel};
use crate::daemon::{self, Daemon};
use crate::guest::{self, Guest};
use crate::initramfs::{Contents, DRIVER};
use crate::logs::Logs;
use crate::pace::{self, Pace};
use crate::qemu::{device_socket, Console, Machine, Qemu, Settings};

/// The kernel that checks itself.
const DEBUG: &str = "debug";

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
    coherent_devices: usize,
    daemon: daemon::Settings,
    mishaps: Vec<(usize, String)>,
    files: Vec<PathBuf>,
    arguments: String,
    leak_check: bool,
    driver: bool,
    parameters: String,
    console: Console,
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
            devices: 1,
            coherent_devices: 0,
            daemon: daemon::Settings::default(),
            mishaps: Vec::new(),
            files: Vec::new(),
            arguments: String::new(),
            leak_check: false,
            driver: true,
            parameters: String::new(),
            console: Console::File,
        }
    }

    /// Names the machine's logs; by default, the thread names them, which in a test
    /// has the name of the test.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// Chooses the kernel: `stock` or `debug`. By default it is [`default_kernel`].
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

    /// Sets the number of accelerators with private memory; 1 by default.
    #[must_use]
    pub fn devices(mut self, devices: usize) -> Self {
        self.devices = devices;
        self
    }

    /// Sets the number of accelerators with coherent memory, which the guest finds after
    /// the others; none by default. They need PCI, and a size that is a power of two.
    #[must_use]
    pub fn coherent_devices(mut self, devices: usize) -> Self {
        self.coherent_devices = devices;
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

    /// Lets something go wrong with a device, as the daemon's `--inject` takes it.
    #[must_use]
    pub fn mishap(mut self, device: usize, rule: &str) -> Self {
        self.mishaps.push((device, rule.to_owned()));
        self
    }

    /// Lets the kernel look for leaks at the end, if it was built to. That makes it half
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

    /// Adds a parameter that the driver is loaded with, such as `dmirror=1`.
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
        let kernel = self.artifacts.kernels.get(&self.kernel).with_context(|| {
            format!(
                "there is no {} kernel among the artifacts; prepare it with `cargo xtask`",
                self.kernel
            )
        })?;
        let pace = Pace::new(self.artifacts.kvm, self.kernel == DEBUG);
        let start = || {
            let logs = Logs::create(&self.artifacts.logs, &self.name)?;
            let place = logs.directory().display().to_string();
            self.assemble(kernel, &logs, pace, Slot::take())
                .with_context(|| format!("starting the machine; logs: {place}"))
        };
        match start() {
            Err(error) if !self.artifacts.kvm && is_the_emulators(&error) => {
                eprintln!("starting the machine once more: {error:#}");
                start()
            }
            other => other,
        }
    }

    fn assemble(&self, kernel: &Kernel, logs: &Logs, pace: Pace, slot: Slot) -> Result<Vm> {
        let devices = self.devices + self.coherent_devices;
        let driver = self.driver && devices > 0;
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
            hmm: Some(self.artifacts.hmm.as_path()).filter(|_| devices > 0),
            modules: &kernel.modules,
            driver: Some(kernel.driver.as_path()).filter(|_| devices > 0),
            files: &self.files,
        }
        .write(&initramfs)?;
        let daemons = (0..devices)
            .map(|device| {
                let settings = self.daemon_settings(device);
                Daemon::start(
                    &self.artifacts.daemon,
                    &directory.path().join(device_socket(device)),
                    &settings,
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
            devices,
            kernel: &kernel.image,
            initramfs: &initramfs,
            arguments: &self.kernel_arguments(pace)?,
            console: self.console,
        };
        let (qemu, agent) = Qemu::start(&settings, directory.path(), logs, pace)?;
        let guest = Guest::greet(agent, logs, pace)?;
        // It is in the guest's memory now, and should not stay behind if we are killed.
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
        if driver {
            vm.guest
                .load_module(DRIVER, &self.parameters, pace::DRIVER)?;
        }
        Ok(vm)
    }

    fn daemon_settings(&self, device: usize) -> daemon::Settings {
        let mine = self.mishaps.iter().filter(|(which, _)| *which == device);
        daemon::Settings {
            mishaps: mine.map(|(_, rule)| rule.clone()).collect(),
            coherent: device >= self.devices,
            ..self.daemon.clone()
        }
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
            // notests: what the kernel tests of its ciphers has nothing to do with us.
            "{console} panic=-1 printk.devkmsg=on log_buf_len=4M cryptomgr.notests=1 \
             sysctl.kernel.hung_task_timeout_secs={} rcupdate.rcu_cpu_stall_timeout={}{}{}{}",
            pace.hung_task_seconds(),
            pace.stall_seconds(),
            if self.kernel == DEBUG && !self.leak_check {
                " kmemleak=off"
            } else {
                ""
            },
            self.machine.kernel_arguments(self.artifacts.kvm)?,
            self.arguments
        ))
    }
}

/// Whether the guest's kernel died or stood still, by a fault of an emulated processor, before it
/// ran anything of ours. Either happens once in some hundred boots; what is our fault happens
/// again when the machine is started once more.
///
/// A kernel puts breakpoints into its own code while it changes it, and takes them away when all
/// processors have seen the change. QEMU's processors, which are threads, can run into one that
/// is gone by then. And some boots end, without a word, while the kernel sets up the machine.
fn is_the_emulators(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| match cause.downcast_ref() {
        Some(guest::Error::Gone { doing, console, .. }) => {
            doing == guest::BOOTING && console.contains("Oops: int3")
        }
        Some(guest::Error::TimedOut { doing, seen, .. }) => {
            doing == guest::BOOTING && !seen.contains("Run /init")
        }
        _ => false,
    })
}
