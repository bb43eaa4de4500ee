//! Receives messages from the agent and passes each to the thread that waits for it.
//!
//! It knows messages and calls, but not what a call is for.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use hmm_agent::protocol::{self, Answer, CallId, End, Event, Failure, Record, Stream, LOG_MARK};

use crate::klog::{judge, Complaint, Severity};

/// Everything that has arrived, and the calls that threads wait for.
#[derive(Debug)]
pub(super) struct Arrivals {
    /// The thread that waits for each call; `None` once the guest is gone.
    calls: Mutex<Option<HashMap<CallId, Sender<Arrival>>>>,
    log: Mutex<KernelLog>,
    /// The error that ended the connection, if one did.
    failed: OnceLock<io::Error>,
}

/// What arrives for a call.
pub(super) enum Arrival {
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

impl Arrivals {
    /// Nothing has arrived yet. Lines of the kernel log will also go to `file`.
    pub(super) fn new(file: File) -> Self {
        Self {
            calls: Mutex::new(Some(HashMap::new())),
            log: Mutex::new(KernelLog {
                file,
                records: Vec::new(),
                marked: false,
                complaints: Vec::new(),
            }),
            failed: OnceLock::new(),
        }
    }

    /// Begins to wait for a call; `None` when the guest is gone.
    ///
    /// The receiver ends when the guest does.
    pub(super) fn expect(&self, call: CallId) -> Option<Receiver<Arrival>> {
        let (arrived, arrivals) = mpsc::channel();
        self.calls().as_mut()?.insert(call, arrived);
        Some(arrivals)
    }

    /// Stops waiting for a call.
    pub(super) fn forget(&self, call: CallId) {
        if let Some(calls) = self.calls().as_mut() {
            calls.remove(&call);
        }
    }

    /// The kernel log, as far as it has arrived.
    pub(super) fn records(&self) -> Vec<Record> {
        self.log().records.clone()
    }

    /// The complaints in it.
    pub(super) fn complaints(&self) -> Vec<Complaint> {
        self.log().complaints.clone()
    }

    /// How the connection failed, in brackets; empty if the guest closed it.
    pub(super) fn why_gone(&self) -> String {
        let failed = self.failed.get();
        failed.map_or_else(String::new, |error| {
            format!(" (the connection failed: {error})")
        })
    }

    /// Passes on messages until the guest is gone.
    pub(super) fn read(&self, mut connection: UnixStream, greeted: &Sender<String>) {
        let end = self.hand_on_all(&mut connection, greeted);
        if let Err(error) = end {
            self.log()
                .remark(&format!("the connection failed: {error}"));
            // Set at most once: one thread reads a connection.
            let _ = self.failed.set(error);
        }
        // Dropping the senders wakes all threads that wait.
        *self.calls() = None;
    }

    fn hand_on_all(&self, from: &mut UnixStream, greeted: &Sender<String>) -> io::Result<()> {
        while let Some(event) = protocol::receive(from)? {
            match event {
                // If the guest greets twice, nothing listens any more.
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
        Ok(())
    }

    fn hand_on(&self, call: CallId, arrival: Arrival) {
        if let Some(waiting) = self.calls().as_ref().and_then(|calls| calls.get(&call)) {
            // The receiver may just have stopped waiting.
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

    fn calls(&self) -> MutexGuard<'_, Option<HashMap<CallId, Sender<Arrival>>>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, KernelLog> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KernelLog {
    /// Keeps a record, and returns its complaint if it is one.
    fn add(&mut self, record: Record) -> Option<Complaint> {
        // An error is ignored: the records are kept in memory, and the file is for people.
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

    /// Adds a line of ours for a person who reads the log.
    fn remark(&mut self, text: &str) {
        let _ = writeln!(self.file, "-- {text}");
    }
}
