//! The guest, as its agent shows it: programs, files, modules, the kernel log.
//!
//! It speaks the agent's protocol over a connection that somebody made, and knows
//! nothing of how the machine runs.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use hmm_agent::protocol::{
    self, Answer, Call, CallId, End, Event, Failure, Program, Request, LOG_MARK,
};
pub use hmm_agent::protocol::{Recipient, Record, Stream, Terminal};

use crate::klog::{judge, judge_console, Complaint, Severity};
use crate::logs::{tail, Logs};
use crate::pace::{Pace, AFTER_TROUBLE, ANSWER, BOOT, COMMAND};

/// How much of its output a program may leave us to keep: more is a mistake of the
/// test, which should look at it while it comes.
const MAX_OUTPUT: usize = 64 << 20;

/// Why the guest did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there any more.
    #[error("the guest is gone while {doing}; its console shows\n{console}\nlogs: {}", logs.display())]
    Gone {
        /// What was being done.
        doing: String,
        /// The end of the console's log.
        console: String,
        /// Where the logs are.
        logs: PathBuf,
    },
    /// It took too long.
    #[error("{doing} took more than {limit:?}{seen}; logs: {}", logs.display())]
    TimedOut {
        /// What was being done.
        doing: String,
        /// The limit.
        limit: Duration,
        /// What a program had printed by then.
        seen: String,
        /// Where the logs are.
        logs: PathBuf,
    },
    /// Its kernel broke meanwhile.
    #[error("the guest's kernel broke while {doing}: {complaint}; logs: {}", logs.display())]
    Broken {
        /// What was being done.
        doing: String,
        /// What the kernel said.
        complaint: Complaint,
        /// Where the logs are.
        logs: PathBuf,
    },
    /// It refused.
    #[error("{doing}: {reason}")]
    Refused {
        /// What was being done.
        doing: String,
        /// The kernel's error number, when the kernel refused.
        errno: Option<i32>,
        /// The reason.
        reason: String,
    },
    /// A program printed more than can be kept.
    #[error("{doing}: it printed more than {MAX_OUTPUT} bytes")]
    TooMuchOutput {
        /// What was being done.
        doing: String,
    },
}

/// A result of something that the guest does.
pub type Result<T> = std::result::Result<T, Error>;

/// A program to run in the guest.
#[derive(Clone, Debug)]
pub struct Command {
    program: Program,
    limit: Option<Duration>,
}

impl Command {
    /// A program, looked up in `/bin` and `/root`.
    #[must_use]
    pub fn new(program: impl Into<String>) -> Self {
        Self {
            program: Program {
                arguments: vec![program.into()],
                environment: Vec::new(),
            },
            limit: Some(COMMAND),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.program.arguments.push(argument.into());
        self
    }

    /// Adds arguments.
    #[must_use]
    pub fn arguments(mut self, arguments: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let arguments = arguments.into_iter().map(Into::into);
        self.program.arguments.extend(arguments);
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn variable(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.program.environment.push((name.into(), value.into()));
        self
    }

    /// Sets how long it may take with KVM and the stock kernel; slower machines
    /// get a multiple.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Lets it take as long as it likes.
    #[must_use]
    pub fn unlimited(mut self) -> Self {
        self.limit = None;
        self
    }
}

impl<S: Into<String>, const N: usize> From<[S; N]> for Command {
    /// A program and its arguments.
    fn from(words: [S; N]) -> Self {
        Self::from_words(words.into_iter().map(Into::into).collect())
    }
}

impl From<&[String]> for Command {
    /// A program and its arguments.
    fn from(words: &[String]) -> Self {
        Self::from_words(words.to_vec())
    }
}

impl Command {
    fn from_words(arguments: Vec<String>) -> Self {
        Self {
            program: Program {
                arguments,
                environment: Vec::new(),
            },
            limit: Some(COMMAND),
        }
    }
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Signalled(i32),
}

/// What a program left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// What it wrote to standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Whether it exited with status 0.
    #[must_use]
    pub fn success(&self) -> bool {
        self.status == Status::Exited(0)
    }

    /// What it wrote to standard output, as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// What it wrote to standard output, if it succeeded.
    ///
    /// # Errors
    ///
    /// When it did not; the text says how it ended and what it printed.
    pub fn succeeded(self) -> anyhow::Result<String> {
        anyhow::ensure!(
            self.success(),
            "the program ended with {:?}\nstdout:\n{}\nstderr:\n{}",
            self.status,
            String::from_utf8_lossy(&self.stdout),
            String::from_utf8_lossy(&self.stderr)
        );
        Ok(self.text())
    }
}

/// The guest.
#[derive(Debug)]
pub struct Guest {
    to_agent: Mutex<UnixStream>,
    shared: Arc<Shared>,
    next: AtomicU32,
    logs: Logs,
    pace: Pace,
    release: String,
}

#[derive(Debug)]
struct Shared {
    /// Who waits for what; `None` once the guest is gone.
    calls: Mutex<Option<HashMap<CallId, Sender<Arrival>>>>,
    log: Mutex<KernelLog>,
}

/// What arrives for a call.
enum Arrival {
    Output(Stream, Vec<u8>),
    Ended(End),
    Answered(std::result::Result<Answer, Failure>),
    /// The kernel broke: the call may never end.
    Broken(Complaint),
}

#[derive(Debug)]
struct KernelLog {
    file: File,
    records: Vec<Record>,
    /// Whether the boot is over.
    marked: bool,
    complaints: Vec<Complaint>,
}

impl Guest {
    /// Waits for the agent's greeting.
    ///
    /// # Errors
    ///
    /// When it does not come in time, or the guest ends.
    pub fn greet(connection: UnixStream, logs: &Logs, pace: Pace) -> anyhow::Result<Self> {
        let from_agent = connection.try_clone().context("sharing the connection")?;
        // A guest that does not read any more must not block us for ever.
        connection.set_write_timeout(Some(pace.scale(ANSWER)))?;
        let shared = Arc::new(Shared {
            calls: Mutex::new(Some(HashMap::new())),
            log: Mutex::new(KernelLog {
                file: File::create(logs.kernel()).context("creating the kernel's log")?,
                records: Vec::new(),
                marked: false,
                complaints: Vec::new(),
            }),
        });
        let (greeted, greeting) = mpsc::channel();
        let reader = Arc::clone(&shared);
        thread::Builder::new()
            .name("guest".into())
            .spawn(move || reader.read(from_agent, &greeted))?;
        let doing = || "the kernel boots".to_owned();
        let release = match greeting.recv_timeout(pace.scale(BOOT)) {
            Ok(release) => release,
            Err(RecvTimeoutError::Disconnected) => Err(Error::Gone {
                doing: doing(),
                console: last_words(logs),
                logs: logs.directory().to_owned(),
            })?,
            Err(RecvTimeoutError::Timeout) => Err(Error::TimedOut {
                doing: doing(),
                limit: pace.scale(BOOT),
                seen: format!("; its console shows last\n{}\n", tail(&logs.console())),
                logs: logs.directory().to_owned(),
            })?,
        };
        Ok(Self {
            to_agent: Mutex::new(connection),
            shared,
            next: AtomicU32::new(0),
            logs: logs.clone(),
            pace,
            release,
        })
    }

    /// The kernel's release.
    #[must_use]
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    ///
    /// When it cannot be started or does not end; not when it fails.
    pub fn run(&self, command: impl Into<Command>) -> Result<Output> {
        self.spawn(command)?.wait()
    }

    /// Starts a program.
    ///
    /// # Errors
    ///
    /// When the guest is gone. That a program cannot be started is told by
    /// [`Running::wait`].
    pub fn spawn(&self, command: impl Into<Command>) -> Result<Running<'_>> {
        let command = command.into();
        let doing = format!("running {}", command.program.arguments.join(" "));
        let limit = command.limit.map(|limit| self.pace.scale(limit));
        self.begin(doing, limit, Request::Run(command.program))
    }

    /// Starts a shell on the console.
    ///
    /// # Errors
    ///
    /// When the guest is gone.
    pub fn shell(&self, terminal: Terminal) -> Result<Running<'_>> {
        self.begin("running a shell".into(), None, Request::Shell(terminal))
    }

    /// Loads a module of the guest.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with the kernel's error number.
    pub fn load_module(&self, path: &str, parameters: &str, limit: Duration) -> Result<()> {
        let request = Request::LoadModule {
            path: path.into(),
            parameters: parameters.into(),
        };
        self.call(format!("loading {path}"), request, limit)?;
        Ok(())
    }

    /// Unloads a module.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with the kernel's error number.
    pub fn unload_module(&self, name: &str, limit: Duration) -> Result<()> {
        let request = Request::UnloadModule { name: name.into() };
        self.call(format!("unloading {name}"), request, limit)?;
        Ok(())
    }

    /// Reads a small file.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when it cannot be read.
    pub fn read_file(&self, path: &str) -> Result<Vec<u8>> {
        let request = Request::ReadFile { path: path.into() };
        match self.call(format!("reading {path}"), request, ANSWER)? {
            Answer::Contents(contents) => Ok(contents),
            Answer::Done => Ok(Vec::new()),
        }
    }

    /// Writes a small file, in one `write` and after truncating it.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] when it cannot be written.
    pub fn write_file(&self, path: &str, contents: impl Into<Vec<u8>>) -> Result<()> {
        let request = Request::WriteFile {
            path: path.into(),
            contents: contents.into(),
        };
        self.call(format!("writing {path}"), request, ANSWER)?;
        Ok(())
    }

    /// The kernel log up to now.
    ///
    /// # Errors
    ///
    /// When the guest is gone.
    pub fn kernel_log(&self) -> Result<Vec<Record>> {
        self.flush_kernel_log()?;
        Ok(self.shared.log().records.clone())
    }

    /// Everything that the kernel has complained of since it booted.
    ///
    /// # Errors
    ///
    /// When the guest is gone; [`known_complaints`](Self::known_complaints) then
    /// has what was heard of it.
    pub fn complaints(&self) -> Result<Vec<Complaint>> {
        self.flush_kernel_log()?;
        Ok(self.known_complaints())
    }

    /// The complaints that have arrived.
    #[must_use]
    pub fn known_complaints(&self) -> Vec<Complaint> {
        self.shared.log().complaints.clone()
    }

    /// Asks for the machine to be switched off.
    ///
    /// # Errors
    ///
    /// When the guest is gone.
    pub fn power_off(&self) -> Result<()> {
        let doing = "switching off".to_owned();
        self.call(doing, Request::PowerOff, ANSWER)?;
        Ok(())
    }

    fn flush_kernel_log(&self) -> Result<()> {
        let doing = "reading the kernel log".to_owned();
        self.call(doing, Request::FlushKernelLog, ANSWER)?;
        Ok(())
    }

    /// Makes a request that has one answer, within `limit` at this guest's pace.
    fn call(&self, doing: String, request: Request, limit: Duration) -> Result<Answer> {
        let mut call = self.begin(doing, Some(self.pace.scale(limit)), request)?;
        loop {
            match call.next()? {
                Arrival::Answered(Ok(answer)) => {
                    call.over = true;
                    return Ok(answer);
                }
                Arrival::Answered(Err(failure)) => {
                    call.over = true;
                    return Err(call.refused(failure));
                }
                // `next` keeps it in mind.
                Arrival::Broken(_) | Arrival::Output(..) | Arrival::Ended(_) => {}
            }
        }
    }

    fn begin(
        &self,
        doing: String,
        limit: Option<Duration>,
        request: Request,
    ) -> Result<Running<'_>> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        let (arrived, arrivals) = mpsc::channel();
        let program = matches!(request, Request::Run(_) | Request::Shell(_));
        match self.shared.calls().as_mut() {
            Some(calls) => calls.insert(id, arrived),
            None => return Err(self.gone(doing)),
        };
        let running = Running {
            guest: self,
            id,
            doing,
            limit,
            deadline: limit.map(|limit| Instant::now() + limit),
            arrivals,
            trouble: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            // Only a program needs to be killed when nobody waits for it any more.
            over: !program,
        };
        if self.tell(&Call { id, request }).is_err() {
            return Err(self.gone(running.doing.clone()));
        }
        Ok(running)
    }

    fn tell(&self, call: &Call) -> io::Result<()> {
        let mut connection = self.to_agent.lock().unwrap_or_else(PoisonError::into_inner);
        protocol::send(&mut *connection, call)
    }

    fn gone(&self, doing: String) -> Error {
        Error::Gone {
            doing,
            console: last_words(&self.logs),
            logs: self.logs.directory().to_owned(),
        }
    }
}

/// What the console shows of a guest that is gone: what its kernel complained of,
/// and the end.
fn last_words(logs: &Logs) -> String {
    /// The first complaints tell the cause; what follows are its effects.
    const COMPLAINTS: usize = 5;
    let console = std::fs::read(logs.console()).unwrap_or_default();
    let mut words: Vec<String> = judge_console(&String::from_utf8_lossy(&console), LOG_MARK)
        .into_iter()
        .take(COMPLAINTS)
        .map(|complaint| format!("    {complaint}"))
        .collect();
    words.push(tail(&logs.console()));
    words.join("\n")
}

/// A program that runs in the guest. Dropped, it is killed.
#[derive(Debug)]
pub struct Running<'a> {
    guest: &'a Guest,
    id: CallId,
    doing: String,
    limit: Option<Duration>,
    deadline: Option<Instant>,
    arrivals: Receiver<Arrival>,
    /// What broke, and when to give up for it.
    trouble: Option<(Complaint, Instant)>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    over: bool,
}

impl Running<'_> {
    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// When it could not be started, prints too much, does not end in time, or the
    /// guest breaks.
    pub fn wait(mut self) -> Result<Output> {
        let status = loop {
            if let Some(status) = self.step()? {
                break status;
            }
        };
        Ok(Output {
            status,
            stdout: std::mem::take(&mut self.stdout),
            stderr: std::mem::take(&mut self.stderr),
        })
    }

    /// Waits until its standard output contains `text`.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait), and when it ends without having printed that.
    pub fn wait_for_output(&mut self, text: &str) -> Result<()> {
        while !String::from_utf8_lossy(&self.stdout).contains(text) {
            if let Some(status) = self.step()? {
                return Err(Error::Refused {
                    doing: self.doing.clone(),
                    errno: None,
                    reason: format!("it ended with {status:?} and did not print {text:?}"),
                });
            }
        }
        Ok(())
    }

    /// Waits for its end, handing on what it prints as it comes.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn stream(mut self, mut print: impl FnMut(Stream, &[u8])) -> Result<Status> {
        loop {
            match self.next()? {
                Arrival::Output(stream, bytes) => print(stream, &bytes),
                Arrival::Ended(end) => return self.end(end),
                Arrival::Answered(_) | Arrival::Broken(_) => {}
            }
        }
    }

    /// Sends it a signal.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] with `ESRCH` when it has ended.
    pub fn signal(&self, signal: i32, recipient: Recipient) -> Result<()> {
        let request = Request::Signal {
            program: self.id,
            signal,
            recipient,
        };
        let doing = format!("sending signal {signal} to what is {}", self.doing);
        self.guest.call(doing, request, ANSWER)?;
        Ok(())
    }

    /// Kills its first process, as `kill -9` does.
    ///
    /// # Errors
    ///
    /// As [`signal`](Self::signal).
    pub fn kill(&self) -> Result<()> {
        self.signal(rustix::process::Signal::KILL.as_raw(), Recipient::Process)
    }

    /// Takes what arrives next; how it ended, if that was it.
    fn step(&mut self) -> Result<Option<Status>> {
        match self.next()? {
            Arrival::Output(stream, bytes) => {
                if self.stdout.len() + self.stderr.len() + bytes.len() > MAX_OUTPUT {
                    return Err(Error::TooMuchOutput {
                        doing: self.doing.clone(),
                    });
                }
                match stream {
                    Stream::Output => self.stdout.extend_from_slice(&bytes),
                    Stream::Error => self.stderr.extend_from_slice(&bytes),
                }
                Ok(None)
            }
            Arrival::Ended(end) => self.end(end).map(Some),
            Arrival::Answered(_) | Arrival::Broken(_) => Ok(None),
        }
    }

    fn end(&mut self, end: End) -> Result<Status> {
        self.over = true;
        match end {
            End::Exited(status) => Ok(Status::Exited(status)),
            End::Signalled(signal) => Ok(Status::Signalled(signal)),
            End::NotStarted(failure) => Err(self.refused(failure)),
        }
    }

    /// The next arrival, before the deadline and soon after the kernel broke.
    fn next(&mut self) -> Result<Arrival> {
        let give_up = [self.deadline, self.trouble.as_ref().map(|(_, at)| *at)]
            .into_iter()
            .flatten()
            .min();
        let arrival = match give_up {
            None => self
                .arrivals
                .recv()
                .map_err(|_| RecvTimeoutError::Disconnected),
            Some(at) => self
                .arrivals
                .recv_timeout(at.saturating_duration_since(Instant::now())),
        };
        match arrival {
            Ok(Arrival::Broken(complaint)) => {
                if self.trouble.is_none() {
                    let grace = self.guest.pace.scale(AFTER_TROUBLE);
                    self.trouble = Some((complaint.clone(), Instant::now() + grace));
                }
                Ok(Arrival::Broken(complaint))
            }
            Ok(arrival) => Ok(arrival),
            Err(RecvTimeoutError::Disconnected) => Err(self.guest.gone(self.doing.clone())),
            Err(RecvTimeoutError::Timeout) => Err(self.late()),
        }
    }

    fn late(&self) -> Error {
        let doing = self.doing.clone();
        let logs = self.guest.logs.directory().to_owned();
        match (&self.trouble, self.limit) {
            (Some((complaint, _)), _) => Error::Broken {
                doing,
                complaint: complaint.clone(),
                logs,
            },
            (None, limit) => Error::TimedOut {
                doing,
                limit: limit.unwrap_or(Duration::MAX),
                seen: format!(
                    "; by then it had printed\n{}{}\n",
                    String::from_utf8_lossy(&self.stdout),
                    String::from_utf8_lossy(&self.stderr)
                ),
                logs,
            },
        }
    }

    fn refused(&self, failure: Failure) -> Error {
        Error::Refused {
            doing: self.doing.clone(),
            errno: failure.errno,
            reason: failure.reason,
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Some(calls) = self.guest.shared.calls().as_mut() {
            calls.remove(&self.id);
        }
        if !self.over {
            // Nobody waits for the answer, and there is nothing to do without one.
            let _ = self.guest.tell(&Call {
                id: self.guest.next.fetch_add(1, Ordering::Relaxed),
                request: Request::Signal {
                    program: self.id,
                    signal: rustix::process::Signal::KILL.as_raw(),
                    recipient: Recipient::Group,
                },
            });
        }
    }
}

impl Shared {
    fn calls(&self) -> MutexGuard<'_, Option<HashMap<CallId, Sender<Arrival>>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, KernelLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands on what arrives until the guest is gone.
    fn read(&self, mut connection: UnixStream, greeted: &Sender<String>) {
        // Whatever ends the stream of messages, the guest cannot be spoken to after.
        while let Ok(Some(event)) = protocol::receive(&mut connection) {
            match event {
                // Greeted twice, nobody listens any more.
                Event::Hello { release } => drop(greeted.send(release)),
                Event::Output {
                    call,
                    stream,
                    bytes,
                } => self.hand_on(call, Arrival::Output(stream, bytes)),
                Event::Ended { call, end } => self.hand_on(call, Arrival::Ended(end)),
                Event::Answered { call, result } => self.hand_on(call, Arrival::Answered(result)),
                Event::Logged(record) => self.logged(record),
            }
        }
        // Dropping the senders tells everybody who waits.
        *self.calls() = None;
    }

    fn hand_on(&self, call: CallId, arrival: Arrival) {
        if let Some(waiting) = self.calls().as_ref().and_then(|calls| calls.get(&call)) {
            // Whoever waited may just have stopped.
            let _ = waiting.send(arrival);
        }
    }

    fn logged(&self, record: Record) {
        let Some(complaint) = self.log().add(record) else {
            return;
        };
        if complaint.severity < Severity::Broken {
            return;
        }
        if let Some(calls) = self.calls().as_ref() {
            for waiting in calls.values() {
                let _ = waiting.send(Arrival::Broken(complaint.clone()));
            }
        }
    }
}

impl KernelLog {
    /// Keeps a record; what it complains of, if it does.
    fn add(&mut self, record: Record) -> Option<Complaint> {
        // The records are kept in any case; the file is for people.
        let _ = writeln!(
            self.file,
            "[{:5}.{:06}] {}",
            record.microseconds / 1_000_000,
            record.microseconds % 1_000_000,
            record.text
        );
        let complaint = if self.marked {
            judge(&record.text)
        } else {
            None
        };
        self.marked |= record.text == LOG_MARK;
        self.complaints.extend(complaint.clone());
        self.records.push(record);
        complaint
    }
}
