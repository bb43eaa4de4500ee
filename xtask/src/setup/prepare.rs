//! Combines the parts into the manifest that the fixture reads.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{bail, ensure, Context, Result};
use hmm_cli::say;
use hmm_vm::artifacts::{self, Artifacts, ForTests};

use crate::args::{BuildArgs, KernelChoice, LibhmmArgs, SetupArgs, ToolboxArgs};
use crate::setup::cache::Cache;
use crate::setup::cargo::{Checkout, Purpose};
use crate::setup::kernel::{self, Kernel};
use crate::setup::root::Mount;
use crate::setup::toolbox::Toolbox;
use crate::setup::{driver, kvm, library, out, release, space, userland};

/// Everything that a virtual machine needs.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub(crate) artifacts: Artifacts,
    /// The names of the kernels among them, in the order in which they were asked for.
    pub(crate) names: Vec<String>,
    manifest: PathBuf,
}

/// The parts that do not come from the checkout.
#[derive(Debug)]
pub(crate) struct Foundation {
    pub(crate) toolbox: Toolbox,
    pub(crate) kernels: Vec<Kernel>,
}

impl Foundation {
    /// Prepares the toolbox and those kernels.
    pub(crate) fn prepare(checkout: &Checkout, kernels: &[KernelChoice]) -> Result<Self> {
        let cache = Cache::of_user()?;
        if !Toolbox::is_prepared(&cache) {
            // All of it, so that a full disk is found before the first of many minutes.
            let debug = if kernels.contains(&KernelChoice::Debug) {
                space::DEBUG_KERNEL + space::USERLAND
            } else {
                0
            };
            let earlier = if kernels.contains(&KernelChoice::Earlier) {
                space::EARLIER_RELEASE + space::STOCK_TREE
            } else {
                0
            };
            let bytes = space::TOOLBOX_AND_STOCK + debug + earlier;
            space::require(cache.directory(), bytes, "what is prepared")?;
        }
        let toolbox = Toolbox::prepare(&cache)?;
        let kernels = kernels
            .iter()
            .map(|choice| Kernel::prepare(&toolbox, choice, &checkout.root))
            .collect::<Result<Vec<_>>>()?;
        for (number, kernel) in kernels.iter().enumerate() {
            let same = |other: &&Kernel| other.name == kernel.name;
            if let Some(other) = kernels.iter().take(number).find(same) {
                bail!(
                    "{} and {} are both called {}: give one of them another CONFIG_LOCALVERSION, \
                     or use them one after the other",
                    other.build.tree.display(),
                    kernel.build.tree.display(),
                    kernel.name
                );
            }
        }
        Ok(Self { toolbox, kernels })
    }

    /// A kernel for what does not depend on it: the stock one if it is there.
    pub(crate) fn any_kernel(&self) -> Result<&Kernel> {
        let stock = self.kernels.iter().find(|kernel| kernel.is_stock());
        stock.or(self.kernels.first()).context("there is a kernel")
    }
}

impl Prepared {
    /// Prepares what is missing and builds what changed.
    pub(crate) fn for_kernels(
        checkout: &Checkout,
        kernels: &[KernelChoice],
        purpose: Purpose,
    ) -> Result<Self> {
        let foundation = Foundation::prepare(checkout, kernels)?;
        Self::on(&foundation, checkout, purpose)
    }

    /// The same for one kernel. Returns its name, too.
    pub(crate) fn for_kernel(
        checkout: &Checkout,
        kernel: &KernelChoice,
        purpose: Purpose,
    ) -> Result<(Self, String)> {
        let prepared = Self::for_kernels(checkout, std::slice::from_ref(kernel), purpose)?;
        let name = prepared.names.first().cloned();
        let name = name.context("one kernel was asked for")?;
        Ok((prepared, name))
    }

    /// The same, on an existing foundation.
    pub(crate) fn on(
        foundation: &Foundation,
        checkout: &Checkout,
        purpose: Purpose,
    ) -> Result<Self> {
        let toolbox = &foundation.toolbox;
        let programs = checkout.build_programs(purpose)?;
        let libhmm = match purpose.needs_library() {
            true => Some(library::Tree::make(checkout)?.root().to_owned()),
            false => None,
        };
        let userland = match purpose.needs_userland() {
            true => Some(userland::prepare(toolbox)?),
            false => None,
        };
        let mut kernels = BTreeMap::new();
        for kernel in &foundation.kernels {
            let entry = artifacts::Kernel {
                release: kernel.release.clone(),
                image: kernel.image.clone(),
                config: kernel.build.config(),
                vmlinux: kernel.vmlinux.clone(),
                share_modules: kernel.share_modules.clone(),
                modules: kernel.modules.clone(),
                driver: driver::build(toolbox, kernel, checkout)?,
                for_tests: match purpose {
                    Purpose::Machine | Purpose::Tools => None,
                    Purpose::Measurements | Purpose::Tests => {
                        Some(for_tests(toolbox, kernel, checkout)?)
                    }
                },
            };
            kernels.insert(kernel.name.clone(), entry);
        }
        let artifacts = Artifacts {
            qemu: toolbox.qemu(),
            kernels,
            daemon: programs.daemon,
            agent: programs.agent,
            hmm: programs.hmm,
            busybox: toolbox.path("/usr/bin/busybox"),
            userland,
            libhmm,
            qemu_configs: checkout.root.join("qemu-configs"),
            logs: checkout.output.join("logs"),
            reports: checkout.output.join("reports"),
            kvm: kvm::works(toolbox)?,
        };
        for directory in [&artifacts.logs, &artifacts.reports] {
            std::fs::create_dir_all(directory)
                .with_context(|| format!("creating {}", directory.display()))?;
        }
        let names = foundation.kernels.iter().map(|kernel| kernel.name.clone());
        Ok(Self {
            artifacts,
            names: names.collect(),
            manifest: checkout.output.join("artifacts.json"),
        })
    }

    /// Writes the manifest, which tells tests the paths. Returns its path.
    pub(crate) fn write_manifest(&self) -> Result<&Path> {
        self.artifacts.write(&self.manifest)?;
        Ok(&self.manifest)
    }
}

/// What the tests of a kernel need besides, built if it is missing.
fn for_tests(toolbox: &Toolbox, kernel: &Kernel, checkout: &Checkout) -> Result<ForTests> {
    let (program, modules) = kernel.tests(toolbox)?;
    Ok(ForTests {
        sample: driver::build_sample(toolbox, kernel, checkout)?,
        test_hmm: modules.test_hmm,
        test_helpers: modules.helpers,
        kernel_tests: artifacts::KernelTests {
            program: program.program,
            source_sha256: program.source_sha256,
        },
    })
}

/// `cargo xtask setup`.
pub(crate) fn setup(args: &SetupArgs) -> Result<ExitCode> {
    let checkout = Checkout::locate()?;
    if args.print_cache_key {
        say!("{}", cache_key(args.debug_kernel, &checkout.root)?);
        return Ok(ExitCode::SUCCESS);
    }
    let cache = Cache::of_user()?;
    if args.update {
        Toolbox::forget(&cache)?;
    }
    if let Some(archive) = &args.import {
        Toolbox::import(&cache, archive)?;
    }
    let mut kernels = vec![KernelChoice::Stock];
    if args.debug_kernel {
        kernels.extend([KernelChoice::Debug, KernelChoice::Earlier]);
    }
    let foundation = Foundation::prepare(&checkout, &kernels)?;
    for kernel in &foundation.kernels {
        // For machines that take all of it from here.
        kernel.tests(&foundation.toolbox)?;
        say!("{} kernel {} is ready", kernel.name, kernel.release);
    }
    if args.debug_kernel {
        userland::prepare(&foundation.toolbox)?;
        say!("Debian's programs for guests are ready");
    }
    let guests = match kvm::works(&foundation.toolbox)? {
        true => "run with KVM",
        false => "are emulated: KVM does not work here",
    };
    say!("guests {guests}");
    say!("all of it is in {}", cache.directory().display());
    if let Some(archive) = &args.export {
        foundation.toolbox.export(&cache, archive)?;
        say!("and in {}", archive.display());
    }
    Ok(ExitCode::SUCCESS)
}

/// What tells a store of caches whether this checkout can use one.
fn cache_key(for_tests: bool, checkout: &Path) -> Result<String> {
    let kernels = kernel::recipe(for_tests, checkout)?;
    let mut names = vec![Toolbox::recipe().entry_name(), kernels.entry_name()];
    if for_tests {
        names.push(userland::recipe().entry_name());
        names.push(release::earlier_recipe().entry_name());
    }
    Ok(names.join("-"))
}

/// `cargo xtask build`.
pub(crate) fn build(args: &BuildArgs) -> Result<ExitCode> {
    let checkout = Checkout::locate()?;
    let prepared = Prepared::for_kernels(&checkout, &args.kernels, Purpose::Tests)?;
    say!("daemon  {}", prepared.artifacts.daemon.display());
    for kernel in prepared.artifacts.kernels.values() {
        say!(
            "driver  {} (Linux {})",
            kernel.driver.display(),
            kernel.release
        );
        say!("sample  {}", kernel.for_tests().sample.display());
    }
    say!("guest   {}", prepared.artifacts.hmm.display());
    say!("list    {}", prepared.write_manifest()?.display());
    if let Some(directory) = &args.out {
        let (artifacts, names) = (&prepared.artifacts, &prepared.names);
        let [name] = names.as_slice() else {
            bail!("a directory holds one driver: choose one kernel for --out");
        };
        out::write(artifacts, &artifacts.kernels[name], directory)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `cargo xtask libhmm`.
pub(crate) fn libhmm(args: &LibhmmArgs) -> Result<ExitCode> {
    let checkout = Checkout::locate()?;
    let tree = library::Tree::make(&checkout)?;
    let root = match &args.out {
        None => tree.root().to_owned(),
        Some(out) => tree.copy_to(out)?,
    };
    say!("headers {}", root.join(library::HEADERS).display());
    say!("library {}", root.join(library::LIBRARIES).display());
    say!("python  {}", root.join(library::PYTHON).display());
    Ok(ExitCode::SUCCESS)
}

/// `cargo xtask headers`.
pub(crate) fn headers() -> Result<ExitCode> {
    let mut cargo = Checkout::locate()?.cargo();
    let status = cargo
        .args(["run", "--quiet", "--package", "hmm-headers"])
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "the generated files could not be written");
    Ok(ExitCode::SUCCESS)
}

/// `cargo xtask toolbox`: the command's own exit status.
pub(crate) fn toolbox(args: &ToolboxArgs) -> Result<ExitCode> {
    /// The directory, then the command.
    const ENTER: &str = "cd \"$1\"; shift; exec \"$@\"";
    let toolbox = Toolbox::prepare(&Cache::of_user()?)?;
    let directory = args
        .directory
        .canonicalize()
        .with_context(|| format!("looking for {}", args.directory.display()))?;
    let mounts = match toolbox.inside(&directory) {
        Ok(_) => Vec::new(),
        Err(_) => vec![Mount::writable(&directory)],
    };
    let seen = toolbox.inside(&directory).unwrap_or(directory);
    let mut command = toolbox.script_with(&mounts, ENTER, [seen.as_os_str()]);
    let status = command
        .args(&args.command)
        .status()
        .context("starting the toolbox")?;
    // A shell's way to tell of a signal.
    let code = status
        .code()
        .or_else(|| status.signal().map(|signal| 128 + signal));
    Ok(ExitCode::from(
        code.and_then(|code| u8::try_from(code).ok())
            .unwrap_or(u8::MAX),
    ))
}

/// `cargo xtask doc`.
pub(crate) fn document() -> Result<ExitCode> {
    let checkout = Checkout::locate()?;
    let toolbox = Toolbox::prepare(&Cache::of_user()?)?;
    let kernel = Kernel::prepare(&toolbox, &KernelChoice::Stock, &checkout.root)?;
    for page in driver::document(&toolbox, &kernel, &checkout)? {
        say!("{}", page.display());
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_of_a_cache_depends_on_the_kernels_in_it_and_on_nothing_else() {
        let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let stock = cache_key(false, &checkout).unwrap();
        assert_eq!(cache_key(false, &checkout).unwrap(), stock);
        let with_debug = cache_key(true, &checkout).unwrap();
        assert_ne!(with_debug, stock);
        assert!(
            stock.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'),
            "{stock}"
        );
        assert!(cache_key(true, Path::new("/nowhere")).is_err());
    }
}
