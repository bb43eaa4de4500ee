//! What a process may do because of the user that has started it.

use caps::errors::CapsError;
use caps::runtime::thread_all_supported;
use caps::{CapSet, Capability, CapsHashSet};
use nix::sys::prctl;
use nix::sys::signal::raise;
use nix::unistd::{getppid, setgroups, setresgid, setresuid, Gid, Uid};

/// The user and the group that own nothing: the kernel's default in `/proc/sys/kernel/overflowuid`.
const NOBODY: u32 = 65534;

/// Rules out that the process, or a program that it starts, has a capability ever again. A process
/// without the right to do so keeps its bounds, in which it has nothing.
pub(super) fn drop_bounds() -> Result<(), CapsError> {
    if !caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP)? {
        return Ok(());
    }
    thread_all_supported()
        .into_iter()
        .try_for_each(|capability| caps::drop(None, CapSet::Bounding, capability))
}

/// Gives up being root. If the process was started so that it ends with its parent, it still does:
/// the kernel forgets that when the user changes (`commit_creds()` in `kernel/cred.c`).
pub(super) fn become_nobody() -> nix::Result<()> {
    let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    let (parent, signal) = (getppid(), prctl::get_pdeathsig()?);
    setgroups(&[])?;
    setresgid(group, group, group)?;
    setresuid(user, user, user)?;
    if let Some(signal) = signal {
        prctl::set_pdeathsig(signal)?;
        if getppid() != parent {
            // It has ended before the line above.
            raise(signal)?;
        }
    }
    Ok(())
}

/// Gives up all capabilities.
pub(super) fn drop_all() -> Result<(), CapsError> {
    keep(&CapsHashSet::new())
}

/// Gives up all capabilities except, if the process has it, to change files of any user.
pub(super) fn keep_file_access() -> Result<(), CapsError> {
    let file_access = Capability::CAP_DAC_OVERRIDE;
    let mut kept = CapsHashSet::new();
    if caps::has_cap(None, CapSet::Effective, file_access)? {
        kept.insert(file_access);
    }
    keep(&kept)
}

fn keep(kept: &CapsHashSet) -> Result<(), CapsError> {
    caps::clear(None, CapSet::Ambient)?;
    caps::clear(None, CapSet::Inheritable)?;
    caps::set(None, CapSet::Effective, kept)?;
    caps::set(None, CapSet::Permitted, kept)
}
