//! A root directory, entered in a mount namespace of its own.
//!
//! It does not know how the root is made, nor what it is for.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::setup::host;

/// Binds what is asked for, and enters. On Debian, a normal user's search path lacks the directory
/// of chroot. Over a root that cannot be written lies memory, which disappears afterwards: mounts need
/// directories, and programs a place for temporary files.
const BIND_AND_ENTER: &str = "PATH=$PATH:/usr/sbin:/sbin; root=$1; shift; \
     if ! test -w \"$root\"; then \
         over=$root/mnt; mount -t tmpfs none \"$over\"; \
         mkdir \"$over/upper\" \"$over/work\" \"$over/root\"; \
         mount -t overlay overlay \"$over/root\" \
             -o \"lowerdir=$root,upperdir=$over/upper,workdir=$over/work\"; \
         root=$over/root; \
     fi; \
     for each in dev proc sys; do mount --rbind /$each \"$root/$each\"; done; \
     while test \"$1\" != enter; do \
         test -d \"$root$3\" || mkdir -p \"$root$3\"; mount --rbind \"$2\" \"$root$3\"; \
         test \"$1\" = rw || mount -o remount,bind,ro \"$root$3\" || \
             echo \"note: $2 could be written\" >&2; \
         shift 3; \
     done; shift; exec chroot \"$root\" \"$@\"";

/// A directory of the host that can be seen inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) directory: PathBuf,
    inside: PathBuf,
    is_writable: bool,
}

impl Mount {
    /// A directory that can be read, at the same place. Only where the host locks its own mounts
    /// against a normal user it could be written, too.
    pub(crate) fn read_only(directory: &Path) -> Self {
        Self::read_only_at(directory, directory)
    }

    /// The same at another place.
    pub(crate) fn read_only_at(directory: &Path, inside: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            inside: inside.to_owned(),
            is_writable: false,
        }
    }

    /// A directory that can be written, too, at the same place.
    pub(crate) fn writable(directory: &Path) -> Self {
        Self {
            is_writable: true,
            ..Self::read_only(directory)
        }
    }
}

/// A root directory.
#[derive(Debug)]
pub(crate) struct Root {
    path: PathBuf,
}

impl Root {
    /// The one in that directory.
    pub(crate) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// A path of it, seen from outside.
    pub(crate) fn path(&self, inside: impl AsRef<Path>) -> PathBuf {
        let inside = inside.as_ref();
        self.path.join(inside.strip_prefix("/").unwrap_or(inside))
    }

    /// The same path, seen from inside.
    pub(crate) fn inside(&self, outside: &Path) -> Result<PathBuf> {
        let relative = outside
            .strip_prefix(&self.path)
            .with_context(|| format!("{} is not in {}", outside.display(), self.path.display()))?;
        Ok(Path::new("/").join(relative))
    }

    /// A shell script that runs inside as root, with directories of the host and positional
    /// arguments.
    pub(crate) fn script<I>(&self, mounts: &[Mount], script: &str, arguments: I) -> Command
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        self.enter(host::as_root_of_own_namespace(), mounts, script, arguments)
    }

    /// The same, and all processes that it starts end with it.
    pub(crate) fn service<I>(&self, mounts: &[Mount], script: &str, arguments: I) -> Command
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        self.enter(host::as_root_of_own_processes(), mounts, script, arguments)
    }

    /// Programs need /dev and /proc. They are the host's, and disappear with the command's own mount
    /// namespace, as do other directories of the host, of which empty ones stay behind.
    fn enter<I>(
        &self,
        mut command: Command,
        mounts: &[Mount],
        script: &str,
        arguments: I,
    ) -> Command
    where
        I: IntoIterator<Item: AsRef<OsStr>>,
    {
        command
            .args(["sh", "-eu", "-c", BIND_AND_ENTER, "sh"])
            .arg(&self.path);
        for mount in mounts {
            command
                .arg(if mount.is_writable { "rw" } else { "ro" })
                .arg(&mount.directory)
                .arg(&mount.inside);
        }
        command.args([
            "enter",
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
}
