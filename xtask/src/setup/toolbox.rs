//! The toolbox: a Debian root with every compiler, source and emulator we need.
//!
//! The host provides mmdebstrap alone, so that the compilers that build the driver are those that
//! built the stock kernel. It does not know what is built inside.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::setup::cache::{Cache, Recipe};
use crate::setup::debian::{self, Contents, SUITE};
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

/// A directory of the host that can be seen inside, at the same place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) directory: PathBuf,
    is_writable: bool,
}

impl Mount {
    /// A directory that can be read. Only where the host locks its own mounts against a normal user
    /// it could be written, too.
    pub(crate) fn read_only(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            is_writable: false,
        }
    }

    /// A directory that can be written, too.
    pub(crate) fn writable(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            is_writable: true,
        }
    }
}

/// A complete toolbox.
#[derive(Debug)]
pub(crate) struct Toolbox {
    root: PathBuf,
    release: String,
    logs: PathBuf,
}

impl Toolbox {
    /// The toolbox of this cache, made if it is missing.
    pub(crate) fn prepare(cache: &Cache) -> Result<Self> {
        let logs = cache.directory().join("logs");
        host::install_missing_packages(&logs.join("host-packages.log"))?;
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
            root,
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

    /// The stock kernel's image, seen from outside.
    pub(crate) fn image(&self) -> PathBuf {
        self.path(self.modules()).join("vmlinuz")
    }

    /// The directory of the stock kernel's modules, seen from inside.
    pub(crate) fn modules(&self) -> PathBuf {
        Path::new("/image/usr/lib/modules").join(&self.release)
    }

    /// A path of the toolbox, seen from outside.
    pub(crate) fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        self.root.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// The same path, seen from inside.
    pub(crate) fn inside(&self, outside: &Path) -> Result<PathBuf> {
        let relative = outside.strip_prefix(&self.root).with_context(|| {
            format!(
                "{} is not in the toolbox {}",
                outside.display(),
                self.root.display()
            )
        })?;
        Ok(Path::new("/").join(relative))
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
        let mut command = self.enter(mounts);
        command.args([
            "/usr/bin/env",
            "-i",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME=/root",
            "LC_ALL=C.UTF-8",
            "sh",
            "-eu",
            "-c",
            script,
            "sh",
        ]);
        command.args(arguments);
        command
    }

    /// Compilers need /dev and objtool /proc. They are the host's, and disappear with the command's
    /// own mount namespace, as do other directories of the host, of which empty ones stay behind.
    fn enter(&self, mounts: &[Mount]) -> Command {
        // On Debian, a normal user's search path lacks the directory of chroot.
        const BIND_AND_ENTER: &str = "PATH=$PATH:/usr/sbin:/sbin; root=$1; shift; \
             for each in dev proc sys; do mount --rbind /$each \"$root/$each\"; done; \
             while test \"$1\" != enter; do \
                 mkdir -p \"$root$2\"; mount --rbind \"$2\" \"$root$2\"; \
                 test \"$1\" = rw || mount -o remount,bind,ro \"$root$2\" || \
                     echo \"note: $2 could be written\" >&2; \
                 shift 2; \
             done; shift; exec chroot \"$root\" \"$@\"";
        let mut command = host::as_root_of_own_namespace();
        command
            .args(["sh", "-eu", "-c", BIND_AND_ENTER, "sh"])
            .arg(&self.root);
        for mount in mounts {
            command
                .arg(if mount.is_writable { "rw" } else { "ro" })
                .arg(&mount.directory);
        }
        command.arg("enter");
        command
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
            root,
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
