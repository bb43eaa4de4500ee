//! The command line. It says what can be asked, not how it is done.

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
    /// Check formatting, lints, documentation and host tests: the quick part, before a push
    Check,
    /// Run every test: the checks, then the tests in virtual machines
    Test(TestArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct SetupArgs {
    /// Prepare the debug kernel too (about 10 minutes on 2 cores)
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
pub(crate) struct TestArgs {
    /// The kernels to run the virtual machine tests on
    #[arg(long = "kernel", value_enum, default_values_t = [KernelChoice::Stock])]
    pub(crate) kernels: Vec<KernelChoice>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }
}
