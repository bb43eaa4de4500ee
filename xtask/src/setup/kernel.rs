//! The guest's kernels: an image to boot and a tree to build modules in.
//!
//! It knows nothing of our driver.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hmm_vm::kconfig::Options;
use sha2::{Digest, Sha256};

use crate::args::KernelChoice;
use crate::setup::boot_image;
use crate::setup::boot_modules;
use crate::setup::cache::{self, Recipe};
use crate::setup::kernel_tests::{self, Program, TEST_HMM};
use crate::setup::release::Release;
use crate::setup::site::Site;
use crate::setup::toolbox::{Toolbox, KERNEL_SERIES};
use crate::setup::tree::{Location, Tree};
use crate::setup::{host, progress, space, tree_modules};

const STOCK_TREE: &str = include_str!("scripts/stock-tree.sh");
const DEBUG_KERNEL: &str = include_str!("scripts/debug-kernel.sh");

/// The options of the debug kernel, in the checkout.
const DEBUG_CONFIG: &str = "tests/guest/debug.config";

/// The names of the kernels that are ours.
pub(crate) const STOCK: &str = "stock";
pub(crate) const DEBUG: &str = "debug";
pub(crate) const EARLIER: &str = "stock-7.2";

/// A kernel that is ready to boot and to build modules for.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// Its name in manifests and file names.
    pub(crate) name: String,
    /// The release, as `uname -r` prints it.
    pub(crate) release: String,
    /// The image that QEMU starts.
    pub(crate) image: PathBuf,
    /// Modules that a virtual machine needs, in load order.
    pub(crate) modules: Vec<PathBuf>,
    /// Modules that only one with a directory of the host needs besides.
    pub(crate) share_modules: Vec<PathBuf>,
    /// The image with its symbols, if it is there.
    pub(crate) vmlinux: Option<PathBuf>,
    /// What modules are built with.
    pub(crate) build: Build,
}

/// How modules are built for a kernel. All paths are those of the host.
#[derive(Debug)]
pub(crate) struct Build {
    /// Where the compilers are.
    pub(crate) site: Site,
    /// The directory of a built kernel, or of one that is prepared for modules.
    pub(crate) tree: PathBuf,
    /// The directory of its sources, which may be the same.
    pub(crate) source: PathBuf,
    /// The archive of its sources as they were, seen from inside the toolbox, if it is not of the
    /// user.
    pub(crate) archive: Option<PathBuf>,
    /// Tells it from others in names of directories.
    pub(crate) name: String,
    /// The arguments of `make` besides the target.
    pub(crate) arguments: Vec<String>,
    /// Whether the user changes the tree as the user likes: what was built may be out of date
    /// though nothing of ours has changed.
    pub(crate) is_of_user: bool,
}

impl Build {
    /// That of a tree in the toolbox, which does not change. `archive` has its sources.
    fn in_toolbox(tree: &Path, archive: PathBuf, arguments: Vec<String>) -> Result<Self> {
        let name = tree.file_name().context("the tree has a name")?;
        Ok(Self {
            site: Site::Toolbox(Vec::new()),
            tree: tree.to_owned(),
            source: tree.to_owned(),
            archive: Some(archive),
            name: name.to_string_lossy().into_owned(),
            arguments,
            is_of_user: false,
        })
    }

    /// The configuration of the kernel.
    pub(crate) fn config(&self) -> PathBuf {
        self.tree.join(".config")
    }
}

impl Kernel {
    /// The kernel of that name, prepared if it is missing.
    pub(crate) fn prepare(
        toolbox: &Toolbox,
        choice: &KernelChoice,
        checkout: &Path,
    ) -> Result<Self> {
        match choice {
            KernelChoice::Stock => of_debian(toolbox, STOCK, &Release::of_stock(toolbox)),
            KernelChoice::Earlier => of_debian(toolbox, EARLIER, &Release::earlier(toolbox)?),
            KernelChoice::Debug => debug(toolbox, &checkout.join(DEBUG_CONFIG)),
            KernelChoice::Built(location) => of_user(toolbox, location),
        }
    }

    /// The kernel's own tests of HMM, and what they need of the kernel, built if they are missing.
    pub(crate) fn tests(&self, toolbox: &Toolbox) -> Result<(Program, kernel_tests::Modules)> {
        let options = Options::read(&self.build.config())?;
        Ok((
            Program::prepare(toolbox, &self.build)?,
            kernel_tests::Modules::of_tree(toolbox, &self.build, &options)?,
        ))
    }

    /// Whether it is Debian's own, of the series for which the driver is written.
    pub(crate) fn is_stock(&self) -> bool {
        self.name == STOCK
    }

    /// Whether it is Debian's own, of the series before.
    pub(crate) fn is_earlier(&self) -> bool {
        self.name == EARLIER
    }
}

/// A kernel that the user has built. It is called by its release.
fn of_user(toolbox: &Toolbox, location: &Location) -> Result<Kernel> {
    let tree = Tree::open(location)?;
    let context = || format!("the kernel in {}", tree.directory.display());
    let mounts = [tree.source.as_path(), tree.directory.as_path()];
    let (site, arguments) = tree
        .compilers
        .locate(toolbox, &tree.directory, &mounts)
        .with_context(context)?;
    let (modules, share_modules) =
        tree_modules::prepare(&tree.directory, &tree.options).with_context(context)?;
    let place = Sha256::digest(tree.directory.as_os_str().as_encoded_bytes());
    let build = Build {
        site,
        // Names of the same tree begin alike.
        name: format!("tree-{:.8}-{:.12}", cache::hex(&place), tree.identity),
        tree: tree.directory.clone(),
        source: tree.source.clone(),
        archive: None,
        arguments,
        is_of_user: true,
    };
    Ok(Kernel {
        name: tree.release.clone(),
        release: tree.release,
        image: tree.image,
        vmlinux: symbols(&tree.directory),
        modules,
        share_modules,
        build,
    })
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

/// A kernel of Debian's.
fn of_debian(toolbox: &Toolbox, name: &str, release: &Release) -> Result<Kernel> {
    let recipe = Recipe::new("stock-tree")
        .with(&release.name)
        .with(STOCK_TREE);
    let words = format!("preparing the tree of the {name} kernel");
    let tree = toolbox.builds().entry(&recipe, |partial| {
        space::require(partial, space::STOCK_TREE, "the stock kernel's tree")?;
        progress::announce(
            &words,
            "the driver is built against it; packages bring no Rust metadata (about 2 minutes)",
        );
        let jobs = host::parallelism().to_string();
        let directory = toolbox.inside(partial)?;
        let (sources, headers) = (release.sources(), release.headers());
        let arguments = [
            directory.as_os_str(),
            release.name.as_ref(),
            sources.as_os_str(),
            headers.as_os_str(),
            jobs.as_ref(),
        ];
        let mut command = toolbox.script(STOCK_TREE, arguments);
        progress::run(&words, &mut command, &toolbox.log(&format!("tree-{name}")))?.check()?;
        Ok(tree_key_files())
    })?;
    let (_, suffix) = release
        .name
        .split_once('+')
        .context("a Debian release has a '+'")?;
    let (modules, share_modules) = boot_modules::prepare(toolbox, release)?;
    let arguments = vec![format!("LOCALVERSION=+{suffix}")];
    let build = Build::in_toolbox(&tree, release.sources(), arguments)?;
    Ok(Kernel {
        name: name.to_owned(),
        release: release.name.clone(),
        image: boot_image::prepare(toolbox, release)?,
        // Debian has it in a package of its own, of a gigabyte.
        vmlinux: None,
        modules,
        share_modules,
        build,
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
    let archive = Release::of_stock(toolbox).sources();
    let build = Build::in_toolbox(&tree, archive, vec!["LLVM=1".to_owned()])?;
    Ok(Kernel {
        name: DEBUG.to_owned(),
        release,
        image: tree.join("arch/x86/boot/bzImage"),
        // Everything that the machine needs is built in.
        modules: Vec::new(),
        share_modules: Vec::new(),
        vmlinux: symbols(&tree),
        build,
    })
}

/// The image with its symbols in a tree, if it is there.
fn symbols(tree: &Path) -> Option<PathBuf> {
    Some(tree.join("vmlinux")).filter(|path| path.is_file())
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
