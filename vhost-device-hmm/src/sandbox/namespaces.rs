//! Namespaces of the process's own: there it finds no network, no other process's IPC objects, and
//! an empty file system.

use std::fs;
use std::io;

use nix::mount::{mount, umount2, MntFlags, MsFlags};
use nix::sched::{unshare, CloneFlags};
use nix::unistd::{chdir, getegid, geteuid, pivot_root};

/// Where the empty file system is mounted until it is the root: a folder that each system has.
const FOR_A_MOMENT: &str = "/proc";

/// Leaves the network, IPC objects and host name of other processes. A user other than root needs a
/// user namespace for it, which many systems allow.
pub(super) fn leave_others(root: bool) -> io::Result<()> {
    let shared = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
    if root {
        return Ok(unshare(shared)?);
    }
    let (user, group) = (geteuid(), getegid());
    unshare(shared | CloneFlags::CLONE_NEWUSER)?;
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1"))
}

/// Leaves the file system. What the process has opened stays open.
pub(super) fn leave_files() -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    // What is mounted here from now on is mounted nowhere else.
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some("none"),
        FOR_A_MOMENT,
        Some("tmpfs"),
        flags,
        Some("size=4k"),
    )?;
    chdir(FOR_A_MOMENT)?;
    // The old root is then mounted on top of the new one.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(chdir("/")?)
}
