//! The files that a virtual machine is made of, as the set-up prepared them.
//!
//! `cargo xtask` writes an [`Artifacts`] manifest; the fixture reads it and does not know how any
//! of the files was built.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::kconfig::Options;

/// The environment variable that names the manifest.
pub const MANIFEST_VARIABLE: &str = "VIRTIO_HMM_ARTIFACTS";

/// Every file that a test VM needs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Artifacts {
    /// The command that starts QEMU: a program and its leading arguments.
    pub qemu: Vec<String>,
    /// Kernels by name: `stock`, `debug`, and for one that the user has built its release.
    pub kernels: BTreeMap<String, Kernel>,
    /// The daemon.
    pub daemon: PathBuf,
    /// The guest's first process, statically linked.
    pub agent: PathBuf,
    /// The guest's `hmm` command, statically linked.
    pub hmm: PathBuf,
    /// A statically linked busybox, for the interactive shell.
    pub busybox: PathBuf,
    /// The root of a Debian system with programs for guests, if it was prepared.
    pub userland: Option<PathBuf>,
    /// libhmm with its headers and the package for Python, like `/usr/local`, if it was built.
    pub libhmm: Option<PathBuf>,
    /// The directory with the QEMU configuration files of the checkout.
    pub qemu_configs: PathBuf,
    /// Where each VM keeps its logs, one directory for each run.
    pub logs: PathBuf,
    /// Where tests leave what they found for people to read.
    pub reports: PathBuf,
    /// Whether a probe has booted the stock kernel with KVM on this machine.
    pub kvm: bool,
}

/// Kernels with one of these options check themselves.
const CHECKS: [&str; 2] = ["KASAN", "PROVE_LOCKING"];

/// One guest kernel and what has to be loaded into it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Kernel {
    /// The release, as `uname -r` prints it.
    pub release: String,
    /// The bootable image.
    pub image: PathBuf,
    /// The configuration that it was built with.
    pub config: PathBuf,
    /// The same image with its symbols, for a debugger, if it is there.
    pub vmlinux: Option<PathBuf>,
    /// Modules that the machine needs (transport, console), in load order.
    pub modules: Vec<PathBuf>,
    /// Modules that only a machine with a directory of the host needs, to be loaded after those.
    pub share_modules: Vec<PathBuf>,
    /// Our driver, built for this kernel.
    pub driver: PathBuf,
    /// What only tests load and run; a person's machine does without.
    pub for_tests: Option<ForTests>,
}

/// What the tests of a kernel need besides.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ForTests {
    /// A driver without a device for the kernel's tests, on the same abstractions as ours.
    pub sample: PathBuf,
    /// The kernel's own driver for the same tests, `test_hmm`.
    pub test_hmm: PathBuf,
    /// Modules that the kernel's tests also need and that this kernel has not built in.
    pub test_helpers: Vec<PathBuf>,
    /// The kernel's own tests of HMM, from its source.
    pub kernel_tests: KernelTests,
}

/// The kernel's own tests of HMM, unchanged.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct KernelTests {
    /// The program, statically linked.
    pub program: PathBuf,
    /// The SHA-256 of the source that it was compiled from, in hexadecimal. That source was
    /// compared with the same file in the kernel's tree.
    pub source_sha256: String,
}

impl Artifacts {
    /// Reads the manifest that [`MANIFEST_VARIABLE`] names.
    ///
    /// # Errors
    ///
    /// When the variable is unset or the manifest cannot be read; the text
    /// says which command prepares it.
    pub fn from_environment() -> Result<Self> {
        let path = std::env::var_os(MANIFEST_VARIABLE).with_context(|| {
            format!("{MANIFEST_VARIABLE} is not set: run the VM tests with `cargo xtask test`")
        })?;
        Self::read(Path::new(&path))
    }

    /// Like [`Self::from_environment`], for a test that cannot run without the manifest.
    ///
    /// # Panics
    ///
    /// When there is no manifest: the test then fails and is not taken for skipped.
    #[must_use]
    pub fn required() -> Self {
        match Self::from_environment() {
            Ok(artifacts) => artifacts,
            Err(error) => panic!("{error:#}"),
        }
    }

    /// A guest program that is built together with the agent.
    #[must_use]
    pub fn guest_program(&self, name: &str) -> PathBuf {
        self.agent.with_file_name(name)
    }

    /// Reads a manifest.
    ///
    /// # Errors
    ///
    /// When the file is missing or is not a manifest.
    pub fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is not an artifact manifest", path.display()))
    }

    /// Writes the manifest, whole or not at all.
    ///
    /// # Errors
    ///
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        let partial = path.with_extension("partial");
        std::fs::write(&partial, text).with_context(|| format!("writing {}", partial.display()))?;
        std::fs::rename(&partial, path).with_context(|| format!("writing {}", path.display()))
    }
}

impl Kernel {
    /// What tests need besides.
    ///
    /// # Panics
    ///
    /// When the kernel was prepared for a person's machine alone. No manifest has such a one.
    #[must_use]
    pub fn for_tests(&self) -> &ForTests {
        let parts = self.for_tests.as_ref();
        parts.expect("the kernel is prepared for tests")
    }

    /// The options that it was built with.
    ///
    /// # Errors
    ///
    /// When its configuration cannot be read.
    pub fn options(&self) -> Result<Options> {
        Options::read(&self.config)
    }

    /// Whether it checks itself, so that all takes longer in it.
    ///
    /// # Errors
    ///
    /// As [`options`](Self::options).
    pub fn checks_itself(&self) -> Result<bool> {
        let options = self.options()?;
        Ok(CHECKS.iter().any(|check| options.has(check)))
    }
}
