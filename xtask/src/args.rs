//! The command line: what can be asked for, not how it is done.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand, ValueEnum};
use hmm_cli::size;
use hmm_explorer::schedule::Shard;
use hmm_vm::vm::LEAST_MEMORY;
use virtio_hmm_spec::wire::LARGE_PAGES;

use crate::patches::Person;
use crate::setup::kernel::{DEBUG, EARLIER, STOCK};
use crate::setup::tree::Location;

/// The log levels of a daemon, from nothing to everything.
const LOG_LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

/// The size of a large leaf, of which a device's memory consists.
const LARGE_LEAF: u64 = LARGE_PAGES << 12;

/// Set up, build, demonstrate and test virtio-hmm.
///
/// Whatever a command needs and does not find, it prepares first and reports. Downloads and
/// prepared kernels live in $VIRTIO_HMM_CACHE, else in $XDG_CACHE_HOME/virtio-hmm, else in
/// ~/.cache/virtio-hmm.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", version, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Prepare what does not come from this checkout: compilers, kernels, QEMU
    Setup(SetupArgs),
    /// Build the daemon, the driver and the guest programs
    Build(BuildArgs),
    /// Run the workloads in a guest and show one table: the product at work
    Demo(DemoArgs),
    /// Start a virtual machine with the device, for a shell or one command
    Vm(VmArgs),
    /// Measure what everything costs; prints a table and writes JSON
    Bench(BenchArgs),
    /// Check formatting, lints, documentation and host tests: the quick part, before a push
    Check,
    /// Check the driver as the tests do: its lints, and that nothing in it can panic
    Lint(LintArgs),
    /// Make the driver's documentation for its developers, of private items too, as web pages
    ///
    /// The stock kernel's own rustdoc reads the driver and the sample as its compiler does. A link
    /// that does not resolve is an error. Prints where the pages are.
    Doc,
    /// Write the definitions for other languages anew from those in Rust
    ///
    /// These are include/uapi/virtio_hmm.h, guest/c/include/hmm.h and guest/python/hmm/_uapi.py. A
    /// test says when one of them is stale.
    Headers,
    /// Build libhmm: the library, its headers, hmm.pc and the package for Python
    Libhmm(LibhmmArgs),
    /// Run every test: the checks, then the tests in virtual machines
    Test(TestArgs),
    /// Search for bugs that appear when the device or the driver is late
    Explore(ExploreArgs),
    /// Write the driver's abstractions and the sample as patches for the kernel
    Patches(PatchesArgs),
    /// Print the options that a kernel needs for the device and its tests
    ///
    /// They are a fragment for the kernel's scripts/kconfig/merge_config.sh, and a file for virtme-ng's
    /// --config.
    Kconfig(KconfigArgs),
    /// Make the book: all pages of this repository for people, with a search
    ///
    /// Prints where its first page is.
    Book(BookArgs),
    /// Run a command in the toolbox: with its compilers, and the sources of its kernel
    ///
    /// They are those that built the stock kernel, so that what they build takes our driver on any
    /// machine. The kernel's sources are in /usr/src.
    Toolbox(ToolboxArgs),
    /// Remove prepared kernels and toolboxes that have not been used for a while
    Clean(CleanArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct SetupArgs {
    /// Prepare what only the tests need, too: the debug kernel (about 8 minutes on 2 cores), an
    /// earlier stock kernel, and Debian's programs for guests
    #[arg(long)]
    pub(crate) debug_kernel: bool,

    /// Build the toolbox and the kernels again, from the newest packages on offer
    #[arg(long)]
    pub(crate) update: bool,

    /// Only print what a store of prepared toolboxes is to be keyed by, for continuous integration:
    /// it is another one when the toolbox or a kernel is prepared in another way
    #[arg(long, conflicts_with_all = ["update", "import", "export"])]
    pub(crate) print_cache_key: bool,

    /// Take the toolbox and the kernels from this archive of --export, if they are missing
    #[arg(long, value_name = "FILE", conflicts_with = "update")]
    pub(crate) import: Option<PathBuf>,

    /// Write the toolbox and the kernels to this archive, such as toolbox.tar.zst; its name says how
    /// it is compressed
    #[arg(long, value_name = "FILE")]
    pub(crate) export: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BuildArgs {
    /// A kernel to build the driver for: stock, debug, or the directory of one that you have built;
    /// may be repeated
    #[arg(long = "kernel", value_name = "KERNEL", default_value = STOCK, value_parser = KernelChoice::parse, long_help = KERNEL_LONG)]
    pub(crate) kernels: Vec<KernelChoice>,

    /// Leave the driver, the daemon, the guest's hmm and a script that starts QEMU here, for
    /// machines of your own
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct LintArgs {
    /// A kernel to check the driver for: stock, debug, or the directory of one that you have built;
    /// may be repeated
    #[arg(long = "kernel", value_name = "KERNEL", default_value = STOCK, value_parser = KernelChoice::parse, long_help = KERNEL_LONG)]
    pub(crate) kernels: Vec<KernelChoice>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct LibhmmArgs {
    /// The directory for it, such as /usr/local, which becomes the prefix of hmm.pc; by default one
    /// among Cargo's output
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) out: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// The guest's kernel: stock, debug, or the directory of one that you have built
    #[arg(long, value_name = "KERNEL", default_value = STOCK, value_parser = KernelChoice::parse, long_help = KERNEL_LONG)]
    pub(crate) kernel: KernelChoice,
}

#[derive(Debug, clap::Args)]
pub(crate) struct VmArgs {
    /// Put this file of the host into the guest's /root; may be repeated
    #[arg(long = "file", value_name = "HOST_PATH")]
    pub(crate) files: Vec<PathBuf>,

    /// The number of devices with private memory
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(..=8))]
    pub(crate) devices: u8,

    /// The number of devices with memory that the guest's CPUs can address; they come after
    /// the others, and their memory must have a size that is a power of two
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u8).range(..=8))]
    pub(crate) coherent_devices: u8,

    /// The guest's memory, such as 512M or 1.5G; K, M, G and T are powers of 1024
    #[arg(long, value_name = "SIZE", default_value = "2G", value_parser = memory)]
    pub(crate) memory: u64,

    /// Each device's own memory, a multiple of 2M
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = device_memory)]
    pub(crate) device_memory: u64,

    /// The guest's kernel: stock, debug, or the directory of one that you have built
    #[arg(long, value_name = "KERNEL", default_value = STOCK, value_parser = KernelChoice::parse, long_help = KERNEL_LONG)]
    pub(crate) kernel: KernelChoice,

    /// The guest's processors
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) cpus: u32,

    /// Let the guest's clock count instructions instead of time, on one processor
    #[arg(long, conflicts_with = "cpus")]
    pub(crate) icount: bool,

    /// The kind of machine: q35, or microvm, which has no PCI
    #[arg(long, value_enum, default_value_t = MachineChoice::Q35)]
    pub(crate) machine: MachineChoice,

    /// Each device's engines; by default the daemon's own number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub(crate) engines: Option<u32>,

    /// Let the devices look for uses of stale translations and freed frames
    #[arg(long)]
    pub(crate) check: bool,

    /// Let a device be late or wrong on purpose, by its number, or every device; RULE is as
    /// for vhost-device-hmm --rule, such as 0:delay=5ms@dma.taken; may be repeated
    #[arg(long = "rule", value_name = "[DEVICE:]RULE", value_parser = rule)]
    pub(crate) rules: Vec<(Option<usize>, String)>,

    /// Print where the devices' control sockets are, for vhost-device-hmm ctl
    #[arg(long)]
    pub(crate) control: bool,

    /// What the daemons log
    #[arg(long, value_name = "LEVEL", default_value = "info", value_parser = LOG_LEVELS)]
    pub(crate) daemon_log: String,

    /// A parameter of the driver, such as dmirror=1; may be repeated
    #[arg(long = "param", value_name = "NAME=VALUE")]
    pub(crate) parameters: Vec<String>,

    /// Add to the kernel's command line; may be repeated
    #[arg(long, value_name = "ARGUMENTS")]
    pub(crate) append: Vec<String>,

    /// Trace driver and devices while the command runs, and write both on one clock to this file, for
    /// Perfetto (ui.perfetto.dev)
    #[arg(long, value_name = "FILE", requires = "command")]
    pub(crate) trace: Option<PathBuf>,

    /// Mount this directory of the host at /share in the guest, for reading and writing
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) share: Option<PathBuf>,

    /// Have strace, gdb, perf, trace-cmd, bpftrace, bpftool, and python3 with numpy in the guest, from
    /// Debian
    #[arg(long)]
    pub(crate) tools: bool,

    /// Wait for a debugger before the first instruction, and print how to start it; nothing then
    /// has a limit of time
    #[arg(long)]
    pub(crate) gdb: bool,

    /// Make the nodes that the kernel's own tests of HMM use, /dev/hmm_dmirrorN
    #[arg(long)]
    pub(crate) dmirror: bool,

    /// The command to run in the guest, in /root, and its arguments; without one, a shell. The exit
    /// status is the command's, or 127 if there is no such command
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Where to write the results; by default a new file among Cargo's output
    #[arg(long, value_name = "PATH")]
    pub(crate) json: Option<PathBuf>,

    /// Report what has become worse or better since an earlier run
    #[arg(long, value_name = "OLD.json")]
    pub(crate) compare: Option<PathBuf>,

    /// Write the table as Markdown, too
    #[arg(long, value_name = "PATH")]
    pub(crate) markdown: Option<PathBuf>,

    /// Measure one part only; those of the host need no virtual machine
    #[arg(long, value_enum)]
    pub(crate) only: Option<BenchPart>,

    /// The guest's kernel: stock, debug, or the directory of one that you have built
    #[arg(long, value_name = "KERNEL", default_value = STOCK, value_parser = KernelChoice::parse, long_help = KERNEL_LONG)]
    pub(crate) kernel: KernelChoice,

    /// Let the guest's clock count instructions instead of time, on one processor, to compare two
    /// versions on a busy machine; leaves out the parts that need no virtual machine
    #[arg(long)]
    pub(crate) icount: bool,

    /// How often the kernel's own benchmark runs on each of the two drivers, in turns
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) kernel_rounds: u8,
}

/// A part of the benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchPart {
    /// The device's parts, without a guest
    Host,
    /// What policies of memory cost on traces of the device's operations, in bytes
    Oversubscription,
    /// Jobs, faults and migrations in a guest
    Guest,
    /// The kernel's own benchmark, on our driver and on the kernel's test driver
    Kernel,
    /// How long the daemon and the driver take to build
    Builds,
}

#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// Run only what has one of these in its name: parts of the run, tests in virtual machines, rows
    /// of the contract, the kernel's own tests of HMM
    ///
    /// Such as contract, model, hmm-tests, explorer, row:munmap, migrate_fault; --list prints all
    /// names. What is left out is said at the end. If only kernels that you have built are tested,
    /// and nothing is named, parts that are about this checkout are left out.
    #[arg(value_name = "NAME")]
    pub(crate) names: Vec<String>,

    /// Print all names, for the first kernel, and run nothing
    #[arg(long)]
    pub(crate) list: bool,

    /// Print the results as KTAP, and all else on standard error
    #[arg(long, conflicts_with = "list")]
    pub(crate) ktap: bool,

    /// Also write the results as JUnit's XML
    #[arg(long, value_name = "FILE", conflicts_with = "list")]
    pub(crate) junit: Option<PathBuf>,

    /// A kernel to test: stock, debug, or the directory of one that you have built; may be repeated
    #[arg(long = "kernel", value_name = "KERNEL", default_values = [STOCK, DEBUG, EARLIER], value_parser = KernelChoice::parse, long_help = KERNEL_LONG)]
    pub(crate) kernels: Vec<KernelChoice>,

    /// How many seconds the explorer searches on each kernel
    #[arg(long, value_name = "SECONDS", default_value_t = 100)]
    pub(crate) explore: u64,

    /// The seed of that search: two runs of one checkout with the same seed search alike
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub(crate) explore_seed: u64,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ExploreArgs {
    /// Only rows and other programs whose names, such as row:munmap-while-it-moves or model:4096:8,
    /// contain this
    #[arg(long, value_name = "PATTERN")]
    pub(crate) row: Option<String>,

    /// How many seconds to search
    #[arg(long, value_name = "N", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) seconds: u64,

    /// The seed of the order and the lateness; by default the time
    #[arg(long, value_name = "S")]
    pub(crate) seed: Option<u64>,

    /// The guest's kernel: stock, debug, or the directory of one that you have built; by default
    /// stock, or the one of the finding
    #[arg(long, value_name = "KERNEL", value_parser = KernelChoice::parse, long_help = KERNEL_LONG)]
    pub(crate) kernel: Option<KernelChoice>,

    /// Search the I-th of N shares, while other machines search the rest with the same seed; then
    /// see --merge
    #[arg(long, value_name = "I/N", default_value = "1/1", value_parser = shard)]
    pub(crate) shard: Shard,

    /// Go on without a program that was broken, instead of ending with the first one
    #[arg(long)]
    pub(crate) keep_going: bool,

    /// Add up tables of coverage, instead of searching
    #[arg(long, value_name = "FILES", num_args = 1.., conflicts_with_all = ["replay", "row", "seconds", "seed", "kernel", "shard", "keep_going"])]
    pub(crate) merge: Vec<PathBuf>,

    /// Try a finding of a search once more, instead of searching; fails if the failure comes back
    #[arg(long, value_name = "FILE")]
    pub(crate) replay: Option<PathBuf>,

    /// How often to try the finding
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) times: u32,

    /// Where to write findings and tables; by default among Cargo's output
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) output: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct PatchesArgs {
    /// The directory for the patches; it must be empty or missing
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) out: PathBuf,

    /// The person that signs the patches off; by default git's user
    #[arg(long, value_name = "NAME <ADDRESS>", value_parser = Person::parse)]
    pub(crate) signoff: Option<Person>,

    /// Also prove, as the tests do, that the patches apply to the kernel's source, build, and pass
    /// their KUnit tests
    #[arg(long)]
    pub(crate) prove: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct KconfigArgs {
    /// Also print the options that look for mistakes, which make a kernel slower
    #[arg(long)]
    pub(crate) debug: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BookArgs {
    /// The directory for the pages, which must be empty or missing; by default one among Cargo's
    /// output
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) out: Option<PathBuf>,

    /// Show the first page in a browser
    #[arg(long)]
    pub(crate) open: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ToolboxArgs {
    /// A directory of this machine, which the command finds at the same place, may write, and
    /// starts in
    #[arg(long = "in", value_name = "DIRECTORY", default_value = ".")]
    pub(crate) directory: PathBuf,

    /// The command
    #[arg(last = true, value_name = "COMMAND", required = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CleanArgs {
    /// For how many days an entry must have been unused; at least one day, because no run lasts
    /// longer
    #[arg(long, value_name = "DAYS", default_value_t = 14, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) unused_for: u64,

    /// Only print what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// A guest kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum KernelChoice {
    /// Debian's own image
    Stock,
    /// Debian's own image of the series before
    Earlier,
    /// The same source with KASAN, lockdep and the like
    Debug,
    /// One that the user has built
    Built(Location),
}

impl KernelChoice {
    /// A kernel by its name, or by the place where it was built.
    ///
    /// # Errors
    ///
    /// When there is none; the text says what it may be.
    fn parse(text: &str) -> Result<Self, String> {
        match text {
            STOCK => Ok(Self::Stock),
            EARLIER => Ok(Self::Earlier),
            DEBUG => Ok(Self::Debug),
            place => Location::parse(place).map(Self::Built),
        }
    }
}

/// What a kernel may be, for `--help`.
const KERNEL_LONG: &str = "\
stock: Debian's own image of Linux 7.3
debug: the same source with KASAN, lockdep and the like
stock-7.2: Debian's own image of Linux 7.2
DIRECTORY: in which you have built a kernel, in its sources or elsewhere (make O=DIRECTORY)
IMAGE,DIRECTORY: the same, and another image of that build

Release, options and compilers are read from the directory, which is not changed. The driver is \
built by the kernel's own compilers: this machine's if they are the same, else the toolbox's. \
`cargo xtask kconfig` prints the options that it must have.";

/// A kind of machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum MachineChoice {
    /// A PC with PCI Express
    Q35,
    /// A small machine without PCI
    Microvm,
}

/// A rule, with the number of its device if it begins with a number and a colon.
fn rule(text: &str) -> Result<(Option<usize>, String), String> {
    match text.split_once(':') {
        None => Ok((None, text.to_owned())),
        Some((device, rule)) => match device.parse() {
            Ok(device) => Ok((Some(device), rule.to_owned())),
            Err(_) => Err(format!("{device:?} is not the number of a device")),
        },
    }
}

/// The guest's memory.
fn memory(text: &str) -> Result<u64, String> {
    let bytes = size::parse(text)?;
    if bytes < LEAST_MEMORY {
        return Err(format!(
            "the guest needs at least {}",
            size::write(LEAST_MEMORY)
        ));
    }
    Ok(bytes)
}

/// A device's memory, which consists of large leaves.
fn device_memory(text: &str) -> Result<u64, String> {
    let bytes: u64 = size::parse(text)?;
    if bytes % LARGE_LEAF != 0 {
        return Err(format!(
            "it must be a multiple of {}, such as {}",
            size::write(LARGE_LEAF),
            size::write(bytes.next_multiple_of(LARGE_LEAF))
        ));
    }
    Ok(bytes)
}

impl Args {
    /// The command line of this process. A wrong one ends the process.
    pub(crate) fn read() -> Self {
        let args = Self::parse();
        if let Err(text) = args.check() {
            Self::command()
                .error(ErrorKind::ValueValidation, text)
                .exit();
        }
        args
    }

    /// Checks options that depend on each other.
    fn check(&self) -> Result<(), String> {
        match &self.command {
            Command::Vm(args) => args.check(),
            _ => Ok(()),
        }
    }
}

impl VmArgs {
    fn check(&self) -> Result<(), String> {
        let memory = self.device_memory;
        if self.coherent_devices > 0 && !memory.is_power_of_two() {
            return Err(format!(
                "--coherent-devices needs a --device-memory that is a power of two: {}, for \
                 example, and not {}",
                size::write(memory.next_power_of_two()),
                size::write(memory)
            ));
        }
        if self.coherent_devices > 0 && self.machine == MachineChoice::Microvm {
            return Err("--coherent-devices needs PCI, which --machine microvm lacks".to_owned());
        }
        let devices = usize::from(self.devices) + usize::from(self.coherent_devices);
        for (device, rule) in &self.rules {
            if let Some(device) = device.filter(|device| *device >= devices) {
                return Err(format!(
                    "--rule {device}:{rule}: there is no device {device}; there are {devices}, \
                     numbered from 0"
                ));
            }
        }
        Ok(())
    }
}

/// A share of a search, `I/N` with I from 1 to N.
///
/// # Errors
///
/// When the text is no share.
fn shard(text: &str) -> Result<Shard, String> {
    let parts = text.split_once('/').and_then(|(index, count)| {
        Some((index.parse::<usize>().ok()?, count.parse::<usize>().ok()?))
    });
    match parts {
        Some((index, count)) if (1..=count).contains(&index) => Ok(Shard {
            index: index - 1,
            count,
        }),
        _ => Err("a share is I/N, with I from 1 to N".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_counted_from_one() {
        assert_eq!(shard("1/1"), Ok(Shard::WHOLE));
        assert_eq!(shard("3/4"), Ok(Shard { index: 2, count: 4 }));
        for text in ["0/4", "5/4", "4", "a/b", "1/0", ""] {
            assert!(shard(text).is_err(), "{text}");
        }
    }

    fn vm(line: &str) -> Result<VmArgs, String> {
        let line = format!("xtask vm {line}");
        let args = Args::try_parse_from(line.split_whitespace()).map_err(|e| e.to_string())?;
        args.check()?;
        match args.command {
            Command::Vm(vm) => Ok(vm),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_size_that_the_machine_cannot_have_is_refused_by_the_name_that_the_user_gave_it() {
        assert_eq!(vm("--memory 1.5G").unwrap().memory, 3 << 29);
        let error = vm("--memory 64M").unwrap_err();
        assert!(
            error.contains("--memory") && error.contains("at least"),
            "{error}"
        );
        let error = vm("--device-memory 3M").unwrap_err();
        assert!(
            error.contains("--device-memory") && error.contains("such as 4M"),
            "{error}"
        );
        let error = vm("--coherent-devices 1 --device-memory 6M").unwrap_err();
        assert!(
            error.contains("--device-memory") && error.contains("8M"),
            "{error}"
        );
        assert!(vm("--device-memory 6M").is_ok(), "private memory may be");
        assert!(vm("--coherent-devices 1 --machine microvm").is_err());
    }

    #[test]
    fn a_rule_for_a_device_that_is_not_there_is_refused() {
        assert!(vm("--devices 2 --rule 1:hold@dma.taken").is_ok());
        let error = vm("--devices 2 --rule 2:hold@dma.taken").unwrap_err();
        assert!(error.contains("there is no device 2"), "{error}");
    }

    #[test]
    fn a_wrong_log_level_lists_the_levels() {
        let error = vm("--daemon-log loud").unwrap_err();
        for level in LOG_LEVELS {
            assert!(error.contains(level), "{error}");
        }
    }

    #[test]
    fn a_command_begins_at_its_name_with_and_without_dashes() {
        for line in [
            "--devices 3 -- hmm run all --size 5",
            "--devices 3 hmm run all --size 5",
        ] {
            let vm = vm(line).unwrap();
            assert_eq!(vm.devices, 3);
            assert_eq!(vm.command, ["hmm", "run", "all", "--size", "5"], "{line}");
        }
        let error = vm("--device 3").unwrap_err();
        assert!(error.contains("unexpected argument '--device'"), "{error}");
    }

    #[test]
    fn a_kernel_is_ours_by_name_or_the_users_by_place() {
        let kernels = |line: &str| {
            let args = Args::try_parse_from(line.split(' '))?;
            let Command::Test(test) = args.command else {
                panic!("another command");
            };
            Ok::<_, clap::Error>(test.kernels)
        };
        let ours = [
            KernelChoice::Stock,
            KernelChoice::Debug,
            KernelChoice::Earlier,
        ];
        assert_eq!(kernels("xtask test").unwrap(), ours);
        let place = tempfile::tempdir().unwrap();
        let line = format!(
            "xtask test --kernel debug --kernel {}",
            place.path().display()
        );
        let built = KernelChoice::Built(Location {
            tree: place.path().to_owned(),
            image: None,
        });
        assert_eq!(kernels(&line).unwrap(), [KernelChoice::Debug, built]);
        let error = kernels("xtask test --kernel sock").unwrap_err().to_string();
        assert!(error.contains("stock, debug"), "{error}");
    }

    #[test]
    fn a_rule_is_for_one_device_or_for_all() {
        let one = (Some(1), "hold@dma.taken".to_owned());
        assert_eq!(rule("1:hold@dma.taken"), Ok(one));
        assert_eq!(rule("hold@dma.taken"), Ok((None, "hold@dma.taken".into())));
        assert!(rule("first:hold@dma.taken").is_err());
    }

    #[test]
    fn every_command_that_a_page_shows_is_understood() {
        let checkout = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let shown = hmm_book::commands::shown(&checkout, "cargo xtask").unwrap();
        assert!(shown.len() > 80, "{}", shown.len());
        // A kernel of the reader's is a directory that must be there.
        let tree = tempfile::tempdir().unwrap();
        let replace = |word: &str| {
            let is_tree = matches!(word, "../linux" | "../before" | "../after" | "TREE");
            is_tree.then(|| tree.path().display().to_string())
        };
        let parse = |words: &[String]| {
            let words = std::iter::once("xtask").chain(words.iter().map(String::as_str));
            let args = Args::try_parse_from(words)?;
            let wrong = |text| Args::command().error(ErrorKind::ValueValidation, text);
            args.check().map_err(wrong)
        };
        let told = hmm_book::commands::misunderstood(&shown, replace, parse);
        assert!(told.is_empty(), "{}", told.join("\n"));
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
