//! The sandbox: what the process gives up before it reads the first byte of a guest.
//!
//! A guest or a front end that took the daemon over would find a process that can open no file,
//! make no connection, start no program and see no other process. The layers are independent of
//! each other: a list of system calls (`calls`), Landlock, namespaces of its own
//! (`namespaces`), no privileges, and limits. What this system does not provide is reported,
//! except the list of system calls, without which there is no sandbox.
//!
//! It must be entered while the process has one thread. All later ones are then inside, too.

mod calls;
mod forbidden;
mod namespaces;
mod privileges;

use std::fmt::Display;
use std::io;

use clap::ValueEnum;
use landlock::{
    Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetError, RulesetStatus, Scope, ABI,
};
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::resource::{getrlimit, setrlimit, Resource};

/// The most descriptors at a time. A front end that sends as many as it may, in front of as many
/// devices as may take long to end, needs fewer.
const DESCRIPTORS: u64 = 1024;

/// The newest version of Landlock that is asked for; an older kernel does what it can.
const LANDLOCK: ABI = ABI::V9;

/// What the sandbox does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// A system call that is not on the list ends the daemon
    #[default]
    On,
    /// A system call that is not on the list is noted in the kernel's log; all else as with `on`
    Log,
    /// There is no sandbox
    Off,
}

/// Why the process cannot enter the sandbox.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process that it needs cannot be started.
    #[error("cannot start the process that works for the sandbox")]
    Helper(#[source] io::Error),
    /// It may be able to gain privileges.
    #[error(
        "this system does not let a process give up its privileges; --sandbox off runs \
        without a sandbox"
    )]
    Privileges(#[source] Errno),
    /// The kernel takes no list of system calls.
    #[error(
        "this system does not limit the system calls of a process (seccomp); --sandbox off \
        runs without a sandbox"
    )]
    Calls(#[source] seccompiler::Error),
    /// The handler for forbidden system calls cannot be installed.
    #[error("cannot report forbidden system calls")]
    Report(#[source] Errno),
}

/// What this system did not provide, in words for the log.
pub type Gaps = Vec<String>;

/// Enters the sandbox. The process must have one thread, and have opened all that it needs.
/// `start_helper` is called where a process can still be started that is in the same network
/// namespace, but that can remove files.
///
/// # Errors
///
/// [`Error`]. The process is then unusable: it may have given up some of what it needs.
pub fn enter(mode: Mode, start_helper: impl FnOnce() -> io::Result<()>) -> Result<Gaps, Error> {
    let mut gaps = Gaps::new();
    if mode == Mode::Off {
        return Ok(gaps);
    }
    let root = nix::unistd::geteuid().is_root();
    let apart = namespaces::leave_others(root);
    start_helper().map_err(Error::Helper)?;
    let apart = apart.and_then(|()| namespaces::leave_files());
    note(
        &mut gaps,
        "it shares namespaces with other processes",
        apart,
    );
    limit(&mut gaps, Resource::RLIMIT_CORE, 0);
    limit(&mut gaps, Resource::RLIMIT_NOFILE, DESCRIPTORS);
    // Root can do this; the user `nobody` cannot.
    let bounds = privileges::drop_bounds();
    note(&mut gaps, "it could have capabilities", bounds);
    if root {
        let nobody = privileges::become_nobody();
        note(&mut gaps, "it stays root", nobody);
    }
    note(&mut gaps, "it has capabilities", privileges::drop_all());
    prctl::set_no_new_privs().map_err(Error::Privileges)?;
    note_landlock(&mut gaps, lock_files());
    if !root {
        // A change of namespaces hides the process from the programs of its own user.
        note(
            &mut gaps,
            "it cannot be inspected",
            prctl::set_dumpable(true),
        );
    }
    if mode == Mode::On {
        forbidden::report().map_err(Error::Report)?;
    }
    calls::limit_daemon(mode == Mode::On).map_err(Error::Calls)?;
    Ok(gaps)
}

/// Confines the process that works for a sandbox to sockets and the removal of files. It must have
/// one thread.
///
/// # Errors
///
/// [`Error`] without a list of system calls. What else is missing does no harm: the process takes
/// no data from others.
pub fn confine_helper() -> Result<(), Error> {
    let mut gaps = Gaps::new();
    limit(&mut gaps, Resource::RLIMIT_CORE, 0);
    // The folder of a socket may belong to another user than root.
    let kept = if nix::unistd::geteuid().is_root() {
        privileges::keep_file_access()
    } else {
        privileges::drop_all()
    };
    note(&mut gaps, "it has capabilities", kept);
    prctl::set_no_new_privs().map_err(Error::Privileges)?;
    calls::limit_helper().map_err(Error::Calls)
}

fn note<E: Display>(gaps: &mut Gaps, what: &str, done: Result<(), E>) {
    if let Err(error) = done {
        gaps.push(format!("{what}: {error}"));
    }
}

fn limit(gaps: &mut Gaps, resource: Resource, most: u64) {
    let set = getrlimit(resource).and_then(|(_, hard)| {
        let most = hard.min(most);
        setrlimit(resource, most, most)
    });
    note(gaps, &format!("{resource:?} is not limited"), set);
}

/// Denies the process all files and all of the network, as far as the kernel can.
fn lock_files() -> Result<RulesetStatus, RulesetError> {
    let nothing = Ruleset::default()
        .handle_access(AccessFs::from_all(LANDLOCK))?
        .handle_access(AccessNet::from_all(LANDLOCK))?
        .scope(Scope::from_all(LANDLOCK))?
        .create()?;
    Ok(nothing.restrict_self()?.ruleset)
}

fn note_landlock(gaps: &mut Gaps, locked: Result<RulesetStatus, RulesetError>) {
    match locked {
        Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => {}
        Ok(_) => gaps.push("Landlock does not deny it files: the kernel has none".into()),
        Err(error) => gaps.push(format!("Landlock does not deny it files: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_system_lacks_is_reported() {
        let mut gaps = Gaps::new();
        note(&mut gaps, "it stays root", Ok::<_, Errno>(()));
        note_landlock(&mut gaps, Ok(RulesetStatus::FullyEnforced));
        // An older kernel denies less, and so does the list of system calls for it.
        note_landlock(&mut gaps, Ok(RulesetStatus::PartiallyEnforced));
        assert!(gaps.is_empty(), "{gaps:?}");
        note(&mut gaps, "it stays root", Err(Errno::EPERM));
        note_landlock(&mut gaps, Ok(RulesetStatus::NotEnforced));
        assert_eq!(gaps.len(), 2);
        assert!(gaps[0].starts_with("it stays root: "), "{gaps:?}");
        assert!(gaps[1].contains("the kernel has none"), "{gaps:?}");
    }

    #[test]
    fn without_a_sandbox_nothing_is_given_up_and_no_helper_is_started() {
        let entered = enter(Mode::Off, || panic!("there is no helper"));
        assert_eq!(entered.unwrap(), Gaps::new());
    }
}
