//! The command line. It says what can be asked, not how it is done.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

/// Set up, build, demonstrate and test virtio-hmm.
///
/// Whatever a command needs and does not find, it prepares first and says so.
/// Downloads and prepared kernels live in $VIRTIO_HMM_CACHE, else in
/// $XDG_CACHE_HOME/virtio-hmm, else in ~/.cache/virtio-hmm.
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
    /// Run every test: the checks, then the tests in virtual machines
    Test(TestArgs),
    /// Remove prepared kernels and toolboxes that nothing has used for a while
    Clean(CleanArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct SetupArgs {
    /// Prepare the debug kernel too (about 8 minutes on 2 cores)
    #[arg(long)]
    pub(crate) debug_kernel: bool,

    /// Build the toolbox and the kernels again, from the newest packages on offer
    #[arg(long)]
    pub(crate) update: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BuildArgs {
    /// The kernels to build the driver for
    #[arg(long = "kernel", value_enum, default_values_t = [KernelChoice::Stock])]
    pub(crate) kernels: Vec<KernelChoice>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// The guest's kernel
    #[arg(long, value_enum, default_value_t = KernelChoice::Stock)]
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

    /// The guest's memory, such as 512M or 2G
    #[arg(long, value_name = "SIZE", default_value = "2G", value_parser = size)]
    pub(crate) memory: u64,

    /// Each device's own memory
    #[arg(long, value_name = "SIZE", default_value = "512M", value_parser = size)]
    pub(crate) device_memory: u64,

    /// The guest's kernel
    #[arg(long, value_enum, default_value_t = KernelChoice::Stock)]
    pub(crate) kernel: KernelChoice,

    /// Make the nodes that the kernel's own tests of HMM use, /dev/hmm_dmirrorN
    #[arg(long)]
    pub(crate) dmirror: bool,

    /// The command to run in the guest, in /root; without one, a shell
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct BenchArgs {
    /// Where to write the results; by default a new file among Cargo's output
    #[arg(long, value_name = "PATH")]
    pub(crate) json: Option<PathBuf>,

    /// Say what has become worse or better since an earlier run
    #[arg(long, value_name = "OLD.json")]
    pub(crate) compare: Option<PathBuf>,

    /// Write the table as Markdown, too
    #[arg(long, value_name = "PATH")]
    pub(crate) markdown: Option<PathBuf>,

    /// Measure one part only; those of the host need no virtual machine
    #[arg(long, value_enum)]
    pub(crate) only: Option<BenchPart>,

    /// How often the kernel's own benchmark runs on each of the two drivers, in turns
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) kernel_rounds: u8,
}

/// A part of the benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum BenchPart {
    /// The device's parts, without a guest
    Host,
    /// Jobs, faults and migrations in a guest
    Guest,
    /// The kernel's own benchmark, on our driver and on the kernel's test driver
    Kernel,
    /// How long the daemon and the driver take to build
    Builds,
}

#[derive(Debug, clap::Args)]
pub(crate) struct TestArgs {
    /// The kernels to run the virtual machine tests on; may be repeated
    #[arg(long = "kernel", value_enum, default_values_t = [KernelChoice::Stock, KernelChoice::Debug])]
    pub(crate) kernels: Vec<KernelChoice>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CleanArgs {
    /// For how many days a thing must have been unused; a day at least, for no run lasts longer
    #[arg(long, value_name = "DAYS", default_value_t = 14, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) unused_for: u64,

    /// Only say what would be removed
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// A guest kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum KernelChoice {
    /// Debian's own image
    Stock,
    /// The same source with KASAN, lockdep and the like
    Debug,
}

impl KernelChoice {
    /// The name that the artifact manifest and the tests use.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stock => "stock",
            Self::Debug => "debug",
        }
    }
}

/// Bytes, from a number with an optional unit; 1K is 1024.
fn size(text: &str) -> Result<u64, parse_size::Error> {
    parse_size::Config::new().with_binary().parse_size(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn sizes_are_in_powers_of_1024() {
        assert_eq!(size("512M").unwrap(), 512 << 20);
        assert_eq!(size("2G").unwrap(), 2 << 30);
        assert_eq!(size("4096").unwrap(), 4096);
        assert!(size("many").is_err());
    }

    #[test]
    fn what_follows_the_dashes_is_the_guests() {
        let line = "xtask vm --devices 2 --file a --file b -- hmm --devices 3";
        let args = Args::try_parse_from(line.split(' ')).unwrap();
        let Command::Vm(vm) = args.command else {
            panic!("another command");
        };
        assert_eq!(vm.devices, 2);
        assert_eq!(vm.files, [PathBuf::from("a"), PathBuf::from("b")]);
        assert_eq!(vm.command, ["hmm", "--devices", "3"]);
    }

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
