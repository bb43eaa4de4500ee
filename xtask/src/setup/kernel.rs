//! The guest's kernels: an image to boot and a tree to build modules in.
//!
//! It knows nothing of our driver.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::args::KernelChoice;
use crate::setup::boot_image;
use crate::setup::boot_modules;
use crate::setup::cache::Recipe;
use crate::setup::kernel_tests;
use crate::setup::toolbox::{Toolbox, KERNEL_SERIES};
use crate::setup::{host, progress, space};

const STOCK_TREE: &str = include_str!("scripts/stock-tree.sh");
const DEBUG_KERNEL: &str = include_str!("scripts/debug-kernel.sh");

/// The options of the debug kernel, in the checkout.
const DEBUG_CONFIG: &str = "tests/guest/debug.config";

/// The kernel's own test driver in the debug kernel's tree.
const TEST_HMM: &str = "lib/test_hmm.ko";

/// A kernel that is ready to boot and to build modules for.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Its name in manifests and file names.
    pub(crate) name: &'static str,
    /// The release, as `uname -r` prints it.
    pub(crate) release: String,
    /// The image that QEMU starts.
    pub(crate) image: PathBuf,
    /// Modules that a virtual machine needs, in load order.
    pub(crate) modules: Vec<PathBuf>,
    /// The prepared source tree, inside the toolbox but as a path of the host.
    pub(crate) tree: PathBuf,
    /// The arguments of `make` besides the target.
    pub(crate) make_arguments: Vec<String>,
    /// What the kernel's own tests of HMM need.
    pub(crate) test_modules: kernel_tests::Modules,
}

impl Kernel {
    /// The kernel of that name, prepared if it is missing.
    pub(crate) fn prepare(
        toolbox: &Toolbox,
        choice: KernelChoice,
        checkout: &Path,
    ) -> Result<Self> {
        match choice {
            KernelChoice::Stock => stock(toolbox),
            KernelChoice::Debug => debug(toolbox, &checkout.join(DEBUG_CONFIG)),
        }
    }
}

/// What decides how the kernels are prepared in a toolbox, which takes most of the time.
pub(crate) fn recipe(debug: bool, checkout: &Path) -> Result<Recipe> {
    let recipe = Recipe::new("kernels").with(STOCK_TREE);
    if !debug {
        return Ok(recipe);
    }
    let config = checkout.join(DEBUG_CONFIG);
    let options = fs::read(&config).with_context(|| format!("reading {}", config.display()))?;
    Ok(recipe.with(DEBUG_KERNEL).with(options))
}

fn stock(toolbox: &Toolbox) -> Result<Kernel> {
    let release = toolbox.release();
    let recipe = Recipe::new("stock-tree").with(release).with(STOCK_TREE);
    let tree = toolbox.builds().entry(&recipe, |partial| {
        space::require(partial, space::STOCK_TREE, "the stock kernel's tree")?;
        progress::announce(
            "preparing the stock kernel's tree",
            "the driver is built against it; packages bring no Rust metadata (about 2 minutes)",
        );
        let jobs = host::parallelism().to_string();
        let directory = toolbox.inside(partial)?;
        let arguments = [
            directory.as_os_str(),
            release.as_ref(),
            KERNEL_SERIES.as_ref(),
            jobs.as_ref(),
        ];
        let mut command = toolbox.script(STOCK_TREE, arguments);
        progress::run(
            "preparing the stock kernel's tree",
            &mut command,
            &toolbox.log("stock-tree"),
        )?
        .check()?;
        Ok(tree_key_files())
    })?;
    let (_, suffix) = release
        .split_once('+')
        .context("a Debian release has a '+'")?;
    let make_arguments = vec![format!("LOCALVERSION=+{suffix}")];
    let test_modules = kernel_tests::Modules::prepare(toolbox, &tree, &make_arguments)?;
    Ok(Kernel {
        name: KernelChoice::Stock.name(),
        release: release.to_owned(),
        image: boot_image::prepare(toolbox)?,
        modules: boot_modules::prepare(toolbox)?,
        tree,
        make_arguments,
        test_modules,
    })
}

fn debug(toolbox: &Toolbox, config: &Path) -> Result<Kernel> {
    let options = fs::read(config).with_context(|| format!("reading {}", config.display()))?;
    let recipe = Recipe::new("debug-kernel")
        .with(toolbox.release())
        .with(DEBUG_KERNEL)
        .with(&options);
    let tree = toolbox.builds().entry(&recipe, |partial| {
        space::require(partial, space::DEBUG_KERNEL, "the debug kernel")?;
        progress::announce(
            "building the debug kernel",
            &format!(
                "KASAN, lockdep and others see what the stock kernel hides (about 8 minutes on 2 \
                 cores, and {})",
                space::gigabytes(space::DEBUG_KERNEL)
            ),
        );
        fs::write(partial.join("debug.config"), &options)?;
        let jobs = host::parallelism().to_string();
        let directory = toolbox.inside(partial)?;
        let arguments = [directory.as_os_str(), KERNEL_SERIES.as_ref(), jobs.as_ref()];
        let mut command = toolbox.script(DEBUG_KERNEL, arguments);
        progress::run(
            "building the debug kernel",
            &mut command,
            &toolbox.log("debug-kernel"),
        )?
        .check()?;
        let mut files = tree_key_files();
        files.extend(["release", "arch/x86/boot/bzImage", TEST_HMM].map(PathBuf::from));
        Ok(files)
    })?;
    let release = fs::read_to_string(tree.join("release"))?.trim().to_owned();
    Ok(Kernel {
        name: KernelChoice::Debug.name(),
        release,
        image: tree.join("arch/x86/boot/bzImage"),
        // Everything that the machine needs is built in.
        modules: Vec::new(),
        test_modules: kernel_tests::Modules {
            test_hmm: tree.join(TEST_HMM),
            helpers: Vec::new(),
        },
        tree,
        make_arguments: vec!["LLVM=1".to_owned()],
    })
}

/// The files of a tree without which no module can be built.
fn tree_key_files() -> Vec<PathBuf> {
    [
        ".config",
        "Module.symvers",
        "include/generated/autoconf.h",
        "include/generated/utsrelease.h",
        "rust/libkernel.rmeta",
        "rust/libcore.rmeta",
        "rust/libzerocopy.rmeta",
        "scripts/mod/modpost",
        "tools/objtool/objtool",
    ]
    .map(PathBuf::from)
    .to_vec()
}
