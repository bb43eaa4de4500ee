//! Processes of the host that end when we do.
//!
//! A [`Process`] and its group are killed when it is dropped. The kernel kills it when we die
//! first, however we die. This module knows nothing of the program that runs.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{
    getpid, getppid, kill_process, kill_process_group, pidfd_open, set_parent_process_death_signal,
    waitid, Pid, PidfdFlags, Signal, WaitId, WaitIdOptions,
};

/// Whether a process shares our terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal {
    /// It has a process group of its own, so that keys of the terminal do not signal it.
    Apart,
    /// It stays in our process group, and may read from our terminal.
    Shared,
}

/// A child of ours.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    terminal: Terminal,
    /// Becomes readable when the process ends.
    handle: OwnedFd,
    life: Arc<Life>,
}

#[derive(Debug, Default)]
struct Life {
    /// Set under the same lock as the process id is released, so that no signal of ours reaches
    /// another process.
    end: Mutex<Option<ExitStatus>>,
    ended: Condvar,
}

/// The kernel kills a child when the *thread* that made it ends. Children live longer than the test
/// thread that asks for them, so one long-lived thread makes them all.
static MAKER: LazyLock<Mutex<Sender<Order>>> = LazyLock::new(|| {
    let (orders, incoming) = mpsc::channel::<Order>();
    thread::spawn(move || {
        for mut order in incoming {
            // The caller waits for the reply.
            let _ = order.reply.send(order.command.spawn());
        }
    });
    Mutex::new(orders)
});

struct Order {
    command: Command,
    reply: Sender<io::Result<Child>>,
}

impl Process {
    /// Starts `command`.
    ///
    /// # Errors
    ///
    /// When it cannot be executed.
    pub fn start(mut command: Command, terminal: Terminal) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        if terminal == Terminal::Apart {
            command.process_group(0);
        }
        let parent = getpid();
        let bound_to_us = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // We may have died before the line above.
            if getppid() == Some(parent) {
                Ok(())
            } else {
                Err(io::Error::from(io::ErrorKind::NotFound))
            }
        };
        // SAFETY: between fork and exec the closure makes two system calls and
        // touches nothing but its own copy of `parent`: it neither allocates nor
        // takes a lock that another thread might have held at the fork.
        unsafe { command.pre_exec(bound_to_us) };
        let child = make(command).with_context(|| format!("starting {name}"))?;
        Self::adopt(child, terminal).with_context(|| format!("watching {name}"))
    }

    fn adopt(mut child: Child, terminal: Terminal) -> Result<Self> {
        let pid = Pid::from_child(&child);
        // The child has not been waited for, so the id is still its own.
        let handle = pidfd_open(pid, PidfdFlags::empty())?;
        let life = Arc::new(Life::default());
        let seen = Arc::clone(&life);
        thread::Builder::new()
            .name(format!("wait-{}", child.id()))
            .spawn(move || {
                let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
                while waitid(WaitId::Pid(pid), ended).is_err_and(|e| e == rustix::io::Errno::INTR) {
                }
                let mut end = seen.lock();
                *end = child.wait().ok();
                drop(end);
                seen.ended.notify_all();
            })?;
        Ok(Self {
            pid,
            terminal,
            handle,
            life,
        })
    }

    /// Its process id; another process may have it after its end.
    #[must_use]
    pub fn id(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// How it ended, if it has.
    #[must_use]
    pub fn ended(&self) -> Option<ExitStatus> {
        *self.life.lock()
    }

    /// Waits until it ends; `None` when `limit` passes first.
    #[must_use]
    pub fn wait(&self, limit: Duration) -> Option<ExitStatus> {
        let (end, _) = self
            .life
            .ended
            .wait_timeout_while(self.life.lock(), limit, |end| end.is_none())
            .unwrap_or_else(PoisonError::into_inner);
        *end
    }

    /// Sends a signal to the process, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        let end = self.life.lock();
        if end.is_none() {
            // It may be a zombie, which ignores signals.
            let _ = kill_process(self.pid, signal);
        }
    }

    /// Kills the process and what it started, and waits for its end.
    pub fn kill(&self) {
        {
            let end = self.life.lock();
            if end.is_none() {
                let _ = match self.terminal {
                    Terminal::Apart => kill_process_group(self.pid, Signal::KILL),
                    Terminal::Shared => kill_process(self.pid, Signal::KILL),
                };
            }
        }
        let _ = self.wait(Duration::MAX);
    }
}

impl AsFd for Process {
    /// A descriptor that becomes readable when the process ends.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Life {
    fn lock(&self) -> MutexGuard<'_, Option<ExitStatus>> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn make(command: Command) -> io::Result<Child> {
    let (reply, made) = mpsc::channel();
    MAKER
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .send(Order { command, reply })
        .map_err(io::Error::other)?;
    made.recv().map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Process {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Process::start(command, Terminal::Apart).unwrap()
    }

    #[test]
    fn a_process_tells_how_it_ended() {
        let process = shell("exit 3");
        let end = process.wait(Duration::from_secs(10)).unwrap();
        assert_eq!(end.code(), Some(3));
        assert_eq!(process.ended(), Some(end));
    }

    #[test]
    fn waiting_for_a_process_that_does_not_end_gives_up() {
        let process = shell("exec sleep 1000");
        assert_eq!(process.wait(Duration::from_millis(50)), None);
        assert_eq!(process.ended(), None);
    }

    #[test]
    fn a_dropped_process_takes_its_children_with_it() {
        let (reader, writer) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-c", "sleep 1000 & wait"])
            .stdout(OwnedFd::from(writer));
        let process = Process::start(command, Terminal::Apart).unwrap();
        drop(process);
        // Both had the other end: the end of the stream is the end of both processes.
        reader
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        assert_eq!(io::copy(&mut &reader, &mut io::sink()).unwrap(), 0);
    }
}
