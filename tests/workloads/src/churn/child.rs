//! A child of this process that has a copy of its memory.
//!
//! It knows nothing of the device.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{
    kill_process, set_parent_process_death_signal, waitpid, Pid, Signal, WaitOptions,
};

use crate::arena::{Arena, Slot};
use crate::sys;

/// How long a forked child waits for its parent.
const TIMEOUT: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// A forked child that checks its copy of the memory twice: at once, and after the jobs of its
/// parent have ended.
pub(super) struct Child {
    /// `None` when it has been waited for.
    pid: Option<Pid>,
    release: OwnedFd,
    // Kept open, so that writing to a child that has died is no SIGPIPE.
    _wait: OwnedFd,
}

impl Child {
    /// Forks the child, which looks at the first words of the arena's home.
    pub(super) fn fork(arena: &Arena, words: usize) -> Result<Self> {
        let (wait, release) = rustix::pipe::pipe().context("making a pipe")?;
        let parent = rustix::process::getpid();
        let body = || {
            // The child has the device open, and must not keep it open when its parent is gone.
            let orphaned = set_parent_process_death_signal(Some(Signal::KILL)).is_err()
                || rustix::process::getppid() != Some(parent);
            if orphaned {
                return 2;
            }
            let sum = || arena.words(Slot::Home, words).fold(0, u64::wrapping_add);
            let before = sum();
            let mut released = [PollFd::new(&wait, PollFlags::IN)];
            if poll(&mut released, Some(&TIMEOUT)) != Ok(1) {
                return 2;
            }
            u8::from(before != sum())
        };
        // SAFETY: the child makes system calls and reads memory; neither allocates nor takes a
        // lock.
        let pid = unsafe { sys::fork(body) }.context("forking")?;
        Ok(Self {
            pid: Some(pid),
            release,
            _wait: wait,
        })
    }

    /// Lets the child check again, and returns its exit status.
    pub(super) fn end(mut self) -> Result<Option<i32>> {
        rustix::io::write(&self.release, &[1]).context("releasing the child")?;
        self.reap()
    }

    fn reap(&mut self) -> Result<Option<i32>> {
        let Some(pid) = self.pid.take() else {
            return Ok(None);
        };
        let ended = loop {
            match waitpid(Some(pid), WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.context("waiting for the child")?,
            }
        };
        Ok(ended.and_then(|(_, status)| status.exit_status()))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
            let _ = self.reap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_tells_that_its_memory_stayed_as_it_was() {
        let mut arena = Arena::reserve(4 << 20).unwrap();
        arena.renew(false).unwrap();
        arena.fill(1000, 1);
        let child = Child::fork(&arena, 1000).unwrap();
        arena.fill(1000, 2);
        assert_eq!(child.end().unwrap(), Some(0));
    }
}
