//! A command, from its first instruction to its end.
//!
//! It is started as a debugger starts a program, and let go before it runs: nothing traces it
//! afterwards. It knows nothing of the device.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::time::Duration;

use nix::sys::ptrace;
use nix::sys::signal::{kill, signal, SigHandler, Signal};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use nix::unistd::Pid;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{getpid, pidfd_open, set_child_subreaper, PidfdFlags};

/// A command that runs, or has not begun to.
#[derive(Debug)]
pub(super) struct Command {
    pid: Pid,
    pidfd: OwnedFd,
    has_begun: bool,
    status: Option<u8>,
}

impl Command {
    /// Starts a program, and stops it before its first instruction. Orphans among its descendants
    /// will be children of this process. Keys that interrupt the program do not end this process.
    pub(super) fn start(arguments: &[OsString]) -> io::Result<Self> {
        let (program, arguments) = arguments
            .split_first()
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        set_child_subreaper(Some(getpid()))?;
        let mut command = std::process::Command::new(program);
        command.args(arguments);
        // SAFETY: between fork and exec the child makes one system call.
        unsafe { command.pre_exec(|| ptrace::traceme().map_err(io::Error::from)) };
        let pid = command.spawn()?.id();
        let pid = Pid::from_raw(pid.try_into().map_err(io::Error::other)?);
        for key in [Signal::SIGINT, Signal::SIGQUIT] {
            // SAFETY: no handler is installed.
            unsafe { signal(key, SigHandler::SigIgn) }?;
        }
        match waitpid(pid, None)? {
            WaitStatus::Stopped(_, Signal::SIGTRAP) => {}
            other => return Err(io::Error::other(format!("not started: {other:?}"))),
        }
        let number = rustix::process::Pid::from_raw(pid.as_raw());
        let pidfd = number.map(|number| pidfd_open(number, PidfdFlags::empty()));
        let pidfd = pidfd.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))??;
        Ok(Self {
            pid,
            pidfd,
            has_begun: false,
            status: None,
        })
    }

    /// Its process.
    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Lets it run.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        ptrace::detach(self.pid, None)?;
        self.has_begun = true;
        Ok(())
    }

    /// Waits until it has ended, but no longer than that. Returns its exit status then: 128 and the
    /// signal's number if a signal has ended it.
    pub(super) fn wait(&mut self, time: Duration) -> io::Result<Option<u8>> {
        let time = Timespec::try_from(time).map_err(io::Error::other)?;
        let mut files = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
        match poll(&mut files, Some(&time)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        self.reap();
        Ok(self.status)
    }

    /// Collects the exit status of the command, and of each orphan that has ended.
    fn reap(&mut self) {
        while let Ok(ended) = waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            let status = match ended {
                WaitStatus::StillAlive => return,
                WaitStatus::Exited(_, code) => u8::try_from(code & 0xff).ok(),
                WaitStatus::Signaled(_, signal, _) => u8::try_from(128 + signal as i32).ok(),
                _ => None,
            };
            if ended.pid() == Some(self.pid) {
                self.status = status.or(self.status);
            }
        }
    }
}

/// A command that was not let go cannot be of use.
impl Drop for Command {
    fn drop(&mut self) {
        if !self.has_begun {
            // If it is gone already, that is what is wanted.
            let _ = kill(self.pid, Signal::SIGKILL);
            let _ = waitpid(self.pid, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test, because each command collects whatever child of the process ends.
    #[test]
    fn a_command_runs_after_it_is_let_go_and_has_its_own_exit_status() {
        let start = |script: &str| {
            let arguments = ["sh", "-c", script].map(OsString::from);
            Command::start(&arguments).unwrap()
        };
        let end = |mut command: Command| {
            command.begin().unwrap();
            loop {
                if let Some(status) = command.wait(Duration::from_secs(60)).unwrap() {
                    return status;
                }
            }
        };
        let mut stopped = start("exit 3");
        assert_eq!(stopped.wait(Duration::from_millis(50)).unwrap(), None);
        assert_eq!(end(stopped), 3);
        assert_eq!(end(start("kill -9 $$")), 137);
        assert_eq!(end(start("grep -q '^TracerPid:.0$' /proc/self/status")), 0);
        let dropped = start("exit 4");
        let pid = dropped.pid();
        drop(dropped);
        assert!(kill(Pid::from_raw(pid), None).is_err(), "it is gone");
        let missing = Command::start(&["/no/such/program".into()]).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
