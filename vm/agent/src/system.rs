//! Mounts the kernel's file systems, which every Linux userspace expects.
//!
//! It knows nothing of the host, the messages or the device.

use std::fs;
use std::io;

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::mount::{mount, MountFlags};
use rustix::system::uname;

struct Mount {
    on: &'static str,
    kind: &'static str,
    /// Whether a small kernel may do without it.
    optional: bool,
}

const fn required(on: &'static str, kind: &'static str) -> Mount {
    Mount {
        on,
        kind,
        optional: false,
    }
}

const fn optional(on: &'static str, kind: &'static str) -> Mount {
    Mount {
        on,
        kind,
        optional: true,
    }
}

/// In this order: some mount points lie in file systems mounted before.
const MOUNTS: [Mount; 9] = [
    required("/proc", "proc"),
    required("/sys", "sysfs"),
    required("/dev", "devtmpfs"),
    required("/tmp", "tmpfs"),
    optional("/dev/pts", "devpts"),
    optional("/dev/shm", "tmpfs"),
    optional("/sys/kernel/debug", "debugfs"),
    optional("/sys/kernel/tracing", "tracefs"),
    optional("/sys/fs/cgroup", "cgroup2"),
];

/// Mounts the kernel's file systems.
///
/// # Errors
///
/// When a file system that nothing works without cannot be mounted.
pub(crate) fn mount_all() -> Result<()> {
    for entry in &MOUNTS {
        if let Err(error) = mount_one(entry) {
            if !entry.optional {
                return Err(error)
                    .with_context(|| format!("mounting {} on {}", entry.kind, entry.on));
            }
        }
    }
    Ok(())
}

fn mount_one(entry: &Mount) -> io::Result<()> {
    // In sysfs the directory exists exactly when the kernel has the file system.
    if !entry.on.starts_with("/sys/") {
        fs::create_dir_all(entry.on)?;
    }
    match mount(entry.kind, entry.on, entry.kind, MountFlags::empty(), None) {
        // The kernel may have mounted devtmpfs itself.
        Ok(()) | Err(Errno::BUSY) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The kernel's release, as `uname -r` prints it.
pub(crate) fn release() -> String {
    uname().release().to_string_lossy().into_owned()
}
