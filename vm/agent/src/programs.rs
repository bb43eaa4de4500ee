//! The programs that run for the host, and every orphan they leave.
//!
//! One thread for each program forwards its output; one thread reaps all children, as the first
//! process must. A process id is looked up, signalled and released under one lock, so that a signal
//! never reaches another process.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::Result;
use hmm_agent::protocol::{CallId, End, Event, Program, Recipient, Stream, Terminal, MAX_CHUNK};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::pipe::{fcntl_getpipe_size, pipe_with, PipeFlags};
use rustix::process::{
    kill_process, kill_process_group, wait, waitid, Pid, Signal, WaitId, WaitIdOptions,
    WaitOptions, WaitStatus,
};

use crate::failure;
use crate::port::Events;
use crate::wake::Wake;

/// Where programs start, and where the host puts its files.
const HOME: &str = "/root";

/// Where programs are looked up. Some guests have a `/usr`.
const PATH: &str = "/bin:/root:/usr/bin:/usr/sbin";

/// The guest's console, which a person may be using.
const CONSOLE: &str = "/dev/console";

/// As much as a pipe normally holds: one chunk empties it.
const CHUNK: usize = 64 << 10;
const _: () = assert!(CHUNK <= MAX_CHUNK);

/// All programs that run.
pub(crate) struct Programs {
    table: Mutex<Table>,
    /// Signalled when the table is no longer empty.
    started: Condvar,
    events: Arc<Events>,
}

#[derive(Default)]
struct Table {
    running: HashMap<CallId, Pid>,
    notices: HashMap<Pid, Notice>,
}

/// How the reaper tells a program's thread that it ended.
struct Notice {
    call: CallId,
    end: Sender<End>,
    wake: Arc<Wake>,
}

impl Programs {
    /// Begins to reap.
    ///
    /// # Errors
    ///
    /// When the kernel has no thread for it.
    pub(crate) fn new(events: Arc<Events>) -> Result<Arc<Self>> {
        let programs = Arc::new(Self {
            table: Mutex::default(),
            started: Condvar::new(),
            events,
        });
        let reaper = Arc::clone(&programs);
        thread::Builder::new()
            .name("reaper".into())
            .spawn(move || reaper.reap())?;
        Ok(programs)
    }

    /// Runs a program. Its end is sent to the host even when the program cannot start.
    ///
    /// # Errors
    ///
    /// When the host is gone.
    pub(crate) fn run(self: &Arc<Self>, call: CallId, program: &Program) -> io::Result<()> {
        let Some((name, arguments)) = program.arguments.split_first() else {
            return self.not_started(call, &io::Error::from(io::ErrorKind::InvalidInput));
        };
        let mut command = command(name);
        command
            .args(arguments)
            .envs(program.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null());
        self.start(call, command, true)
    }

    /// Runs a shell on the console.
    ///
    /// # Errors
    ///
    /// When the host is gone.
    pub(crate) fn run_shell(self: &Arc<Self>, call: CallId, terminal: &Terminal) -> io::Result<()> {
        match shell(terminal) {
            Ok(command) => self.start(call, command, false),
            Err(error) => self.not_started(call, &error),
        }
    }

    /// Signals a program.
    ///
    /// # Errors
    ///
    /// `ESRCH` when it has ended, `EINVAL` for a number that is no signal.
    pub(crate) fn signal(&self, program: CallId, number: i32, to: Recipient) -> io::Result<()> {
        let signal = Signal::from_named_raw(number).ok_or(Errno::INVAL)?;
        let table = self.lock();
        let pid = *table.running.get(&program).ok_or(Errno::SRCH)?;
        match to {
            Recipient::Process => kill_process(pid, signal)?,
            Recipient::Group => kill_process_group(pid, signal)?,
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn not_started(&self, call: CallId, error: &io::Error) -> io::Result<()> {
        self.events.send(&Event::Ended {
            call,
            end: End::NotStarted(failure(error)),
        })
    }

    fn start(self: &Arc<Self>, call: CallId, command: Command, piped: bool) -> io::Result<()> {
        match self.try_start(call, command, piped) {
            Ok(()) => Ok(()),
            Err(error) => self.not_started(call, &error),
        }
    }

    fn try_start(
        self: &Arc<Self>,
        call: CallId,
        mut command: Command,
        piped: bool,
    ) -> io::Result<()> {
        let mut streams = Vec::new();
        if piped {
            let (output, for_output) = pipe_with(PipeFlags::CLOEXEC)?;
            let (error, for_error) = pipe_with(PipeFlags::CLOEXEC)?;
            command.stdout(for_output).stderr(for_error);
            streams.push((Stream::Output, output));
            streams.push((Stream::Error, error));
        }
        let wake = Arc::new(Wake::new()?);
        let (end, ended) = mpsc::channel();
        let forwarder = Forwarder {
            call,
            streams,
            wake: Arc::clone(&wake),
            ended,
            events: Arc::clone(&self.events),
        };
        // The thread is made first: once the program runs, nothing may fail any more. The thread
        // ends by itself when `end` is dropped unused.
        thread::Builder::new()
            .name(format!("program-{call}"))
            .spawn(move || forwarder.run())?;
        // Under the lock, so that the reaper cannot take the child before the table has it.
        let mut table = self.lock();
        let child = match command.spawn() {
            Ok(child) => child,
            Err(error) => {
                drop(table);
                drop(end);
                wake.raise()?;
                return Err(error);
            }
        };
        let pid = Pid::from_child(&child);
        table.running.insert(call, pid);
        table.notices.insert(pid, Notice { call, end, wake });
        self.started.notify_one();
        Ok(())
    }

    /// Reaps for ever.
    fn reap(&self) {
        loop {
            // `NOWAIT` keeps the process id in use until the lock is held.
            match waitid(WaitId::All, WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
                Ok(_) => self.take_all(),
                Err(Errno::CHILD) => {
                    let table = self.lock();
                    drop(
                        self.started
                            .wait_while(table, |table| table.notices.is_empty())
                            .unwrap_or_else(PoisonError::into_inner),
                    );
                }
                // Interrupted.
                Err(_) => {}
            }
        }
    }

    fn take_all(&self) {
        let mut table = self.lock();
        // Not blocking: the child seen above may be a program that could not be executed, which the
        // thread that tried to start it has reaped.
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            // An orphan has no notice.
            let (Some(end), Some(notice)) = (end_of(status), table.notices.remove(&pid)) else {
                continue;
            };
            table.running.remove(&notice.call);
            // The thread may have gone with the host; then the end is of no use.
            let _ = notice.end.send(end);
            let _ = notice.wake.raise();
        }
    }
}

fn end_of(status: WaitStatus) -> Option<End> {
    status
        .exit_status()
        .map(End::Exited)
        .or_else(|| status.terminating_signal().map(End::Signalled))
}

/// The thread that forwards one program's output and its end.
struct Forwarder {
    call: CallId,
    streams: Vec<(Stream, OwnedFd)>,
    wake: Arc<Wake>,
    ended: Receiver<End>,
    events: Arc<Events>,
}

impl Forwarder {
    fn run(mut self) {
        // A failure means that the host is gone, and the agent ends with it.
        let _ = self.forward();
    }

    fn forward(&mut self) -> io::Result<()> {
        loop {
            let (ready, ended) = self.wait()?;
            // What the program wrote before it ended is in the pipes by now and goes first. A
            // descendant that keeps a pipe open is not waited for.
            for (index, ready) in ready.into_iter().enumerate().rev() {
                if ready && !self.pass(index, ended)? {
                    self.streams.remove(index);
                }
            }
            if ended {
                return match self.ended.recv() {
                    Ok(end) => self.events.send(&Event::Ended {
                        call: self.call,
                        end,
                    }),
                    // The program never started; the thread that tried reports it.
                    Err(mpsc::RecvError) => Ok(()),
                };
            }
        }
    }

    /// Which streams have something, and whether the program has ended.
    fn wait(&self) -> io::Result<(Vec<bool>, bool)> {
        let mut sources: Vec<PollFd<'_>> = self
            .streams
            .iter()
            .map(|(_, pipe)| PollFd::new(pipe, PollFlags::IN))
            .collect();
        sources.push(PollFd::new(&*self.wake, PollFlags::IN));
        while let Err(error) = poll(&mut sources, None) {
            if error != Errno::INTR {
                return Err(error.into());
            }
        }
        let mut ready: Vec<bool> = sources
            .iter()
            .map(|source| !source.revents().is_empty())
            .collect();
        let ended = ready.pop().unwrap_or(false);
        Ok((ready, ended))
    }

    /// Passes on what a stream has; `false` when it is closed.
    ///
    /// With `all` it is emptied, but only of as much as it can have held at the start: a descendant
    /// may write for ever.
    fn pass(&self, index: usize, all: bool) -> io::Result<bool> {
        let (stream, pipe) = &self.streams[index];
        let mut left = if all { fcntl_getpipe_size(pipe)? } else { 0 };
        let mut buffer = [0; CHUNK];
        loop {
            let length = match rustix::io::read(pipe, &mut buffer) {
                Ok(0) => return Ok(false),
                Ok(length) => length,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error.into()),
            };
            self.events.send(&Event::Output {
                call: self.call,
                stream: *stream,
                bytes: buffer[..length].to_vec(),
            })?;
            left = left.saturating_sub(length);
            if left == 0 || !has_more(pipe)? {
                return Ok(true);
            }
        }
    }
}

fn has_more(pipe: &OwnedFd) -> io::Result<bool> {
    let mut source = [PollFd::new(pipe, PollFlags::IN)];
    loop {
        match poll(&mut source, Some(&Timespec::default())) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A command with the settings that every program of the guest gets.
fn command(name: &str) -> Command {
    let mut command = Command::new(name);
    command
        .env("PATH", PATH)
        .env("HOME", HOME)
        .env("USER", "root")
        .current_dir(HOME)
        .process_group(0);
    command
}

/// A shell that owns the console, of the size of the person's terminal.
fn shell(terminal: &Terminal) -> io::Result<Command> {
    let console = OpenOptions::new().read(true).write(true).open(CONSOLE)?;
    // In a session of its own the shell can have a controlling terminal, and with it job control
    // and ^C. `/dev/console` cannot be one: `cttyhack` finds the terminal behind it.
    let mut command = Command::new("setsid");
    command
        .args(["cttyhack", "sh", "-c"])
        .arg("stty rows \"$ROWS\" cols \"$COLUMNS\" 2>/dev/null; exec sh -l")
        .env("PATH", PATH)
        .env("HOME", HOME)
        .env("USER", "root")
        .env("PS1", "guest:\\w# ")
        .env("TERM", &terminal.kind)
        .env("ROWS", terminal.rows.to_string())
        .env("COLUMNS", terminal.columns.to_string())
        .current_dir(HOME)
        .stdin(console.try_clone()?)
        .stdout(console.try_clone()?)
        .stderr(console);
    Ok(command)
}
