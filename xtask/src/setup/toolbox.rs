//! The toolbox: a Debian root with every compiler, source and emulator we need.
//!
//! The host provides mmdebstrap alone, so that the compilers that build the driver are those that
//! built the stock kernel. [`Root`] enters it. It does not know what is built inside.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::setup::cache::{Cache, Recipe};
use crate::setup::debian::{self, Contents, SUITE};
use crate::setup::root::{Mount, Root};
use crate::setup::{archive, host, progress, space};

/// The kernel series; the newest available release of it is used.
pub(crate) const KERNEL_SERIES: &str = "7.3";

/// The directory of builds, seen from inside.
pub(crate) const BUILD: &str = "/build";

const PACKAGES: &[&str] = &[
    "bc",
    "bindgen",
    "bison",
    "busybox-static",
    "ca-certificates",
    "clang",
    "cpio",
    "flex",
    "gcc",
    "kmod",
    "libelf-dev",
    "libssl-dev",
    "lld",
    "llvm",
    "lz4",
    "make",
    "python3",
    "rust-clippy",
    "rust-src",
    "rustc",
    "rustfmt",
    "xz-utils",
    "zstd",
];

const CUSTOMIZE: &str = include_str!("scripts/toolbox.sh");

/// A complete toolbox.
#[derive(Debug)]
pub(crate) struct Toolbox {
    root: Root,
    release: String,
    logs: PathBuf,
}

impl Toolbox {
    /// The toolbox of this cache, made if it is missing.
    pub(crate) fn prepare(cache: &Cache) -> Result<Self> {
        let logs = cache.logs();
        if cache.is_writable() {
            host::install_missing_packages(&logs.join("host-packages.log"))?;
        }
        host::check_namespaces()?;
        let entry = cache.entry(&Self::recipe(), |partial| {
            space::require(cache.directory(), space::TOOLBOX, "the toolbox")?;
            progress::announce(
                "making the toolbox",
                &format!(
                    "a Debian {SUITE} root with compilers, the {KERNEL_SERIES} kernel and QEMU, \
                     in {} (about 3 minutes, and {} with the stock kernel's tree)",
                    cache.directory().display(),
                    space::gigabytes(space::TOOLBOX_AND_STOCK)
                ),
            );
            bootstrap(partial, &logs.join("toolbox.log"))
        })?;
        let root = entry.join("root");
        let release = fs::read_to_string(root.join("kernel-release"))
            .context("reading the kernel release of the toolbox")?
            .trim()
            .to_owned();
        Ok(Self {
            root: Root::at(root),
            release,
            logs,
        })
    }

    /// Whether the toolbox of this cache is complete.
    pub(crate) fn is_prepared(cache: &Cache) -> bool {
        cache.has(&Self::recipe())
    }

    /// Takes the toolbox, with what was built in it, from an archive of [`Self::export`], unless it is
    /// there already.
    pub(crate) fn import(cache: &Cache, archive: &Path) -> Result<()> {
        let log = cache.directory().join("logs/import.log");
        cache.entry(&Self::recipe(), |partial| {
            space::require(
                cache.directory(),
                space::TOOLBOX_AND_STOCK,
                "what is in the archive",
            )?;
            archive::unpack(archive, partial, &log)?;
            key_files(&partial.join("root"))
                .with_context(|| format!("{} has no toolbox of this version", archive.display()))
        })?;
        Ok(())
    }

    /// Writes the toolbox to an archive, with what was built in it except the driver, which is soon
    /// out of date.
    pub(crate) fn export(&self, cache: &Cache, archive: &Path) -> Result<()> {
        let name = Self::recipe().entry_name();
        let drivers = format!("{name}/root{BUILD}/driver-*");
        let _lock = cache.lock(&name)?;
        archive::pack(
            cache.directory(),
            &name,
            &drivers,
            archive,
            &self.log("export"),
        )
    }

    /// Removes the toolbox and what was built in it.
    pub(crate) fn forget(cache: &Cache) -> Result<()> {
        cache.forget(&Self::recipe())
    }

    /// The recipe of the toolbox.
    pub(crate) fn recipe() -> Recipe {
        Recipe::new("toolbox")
            .with(SUITE)
            .with(KERNEL_SERIES)
            .with(PACKAGES.join(","))
            .with(CUSTOMIZE)
    }

    /// The release of the stock kernel, as `uname -r` prints it.
    pub(crate) fn release(&self) -> &str {
        &self.release
    }

    /// The log file of a long step.
    pub(crate) fn log(&self, name: &str) -> PathBuf {
        self.logs.join(format!("{name}.log"))
    }

    /// A path of the toolbox, seen from outside.
    pub(crate) fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        self.root.path(inside)
    }

    /// The same path, seen from inside.
    pub(crate) fn inside(&self, outside: &Path) -> Result<PathBuf> {
        self.root.inside(outside)
    }

    /// The directory of builds inside, which is itself a cache.
    pub(crate) fn builds(&self) -> Cache {
        Cache::at(self.path(BUILD))
    }

    /// A shell script that runs inside as root, with positional arguments.
    pub(crate) fn script<I>(&self, script: &str, arguments: I) -> Command
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        self.script_with(&[], script, arguments)
    }

    /// The same, with directories of the host.
    pub(crate) fn script_with<I>(&self, mounts: &[Mount], script: &str, arguments: I) -> Command
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        self.root.script(mounts, script, arguments)
    }

    /// The command that starts QEMU outside the toolbox: QEMU needs no root directory of its own,
    /// only its libraries and firmware.
    pub(crate) fn qemu(&self) -> Vec<String> {
        let path = |inside| self.path(inside).display().to_string();
        let mut command = vec![path("/lib64/ld-linux-x86-64.so.2")];
        command.extend([
            "--library-path".to_owned(),
            path("/usr/lib/x86_64-linux-gnu"),
        ]);
        command.push(path("/usr/bin/qemu-system-x86_64"));
        for firmware in [
            "/usr/share/qemu",
            "/usr/share/seabios",
            "/usr/lib/ipxe/qemu",
        ] {
            command.extend(["-L".to_owned(), path(firmware)]);
        }
        command
    }
}

#[cfg(test)]
impl Toolbox {
    /// One of which only the place matters.
    pub(crate) fn at(root: PathBuf) -> Self {
        Self {
            root: Root::at(root),
            release: String::new(),
            logs: PathBuf::new(),
        }
    }
}

/// The directory of builds of the toolbox in this cache entry.
pub(crate) fn builds_in(entry: &Path) -> PathBuf {
    entry.join("root").join(BUILD.trim_start_matches('/'))
}

/// Makes the directory `root` in `entry` and returns the files that prove that it is complete.
fn bootstrap(entry: &Path, log: &Path) -> Result<Vec<PathBuf>> {
    let root = entry.join("root");
    let contents = Contents {
        variant: "minbase",
        packages: PACKAGES,
        without: &[],
        script: Some(&format!("series={KERNEL_SERIES}\n{CUSTOMIZE}")),
    };
    debian::make(&root, contents, "making the toolbox", log)?;
    key_files(&root)
}

/// The files of a toolbox, relative to its entry, that prove that it is complete.
fn key_files(root: &Path) -> Result<Vec<PathBuf>> {
    let release = fs::read_to_string(root.join("kernel-release"))?;
    let release = release.trim();
    let files = [
        "kernel-release".to_owned(),
        "probe.cpio".to_owned(),
        "usr/bin/qemu-system-x86_64".to_owned(),
        "usr/bin/rustc".to_owned(),
        "usr/bin/bindgen".to_owned(),
        "usr/bin/busybox".to_owned(),
        format!("image/usr/lib/modules/{release}/vmlinuz"),
        format!("image/usr/lib/modules/{release}/modules.dep"),
        format!("usr/src/linux-headers-{release}/Module.symvers"),
        format!("usr/src/linux-source-{KERNEL_SERIES}.tar.xz"),
    ];
    Ok(files
        .into_iter()
        .map(|file| Path::new("root").join(file))
        .collect())
}
