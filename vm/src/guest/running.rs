//! A call in progress, and the program behind it.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use hmm_agent::protocol::{Answer, Call, CallId, End, Failure, Recipient, Request, Stream};
use rustix::process::Signal;

use super::connection::Arrival;
use super::{Error, Guest, Output, Result, Status};
use crate::klog::Complaint;
use crate::pace::{AFTER_TROUBLE, ANSWER};

/// How many bytes of a program's output are kept. A test whose program prints more should read the
/// output as it arrives.
pub(super) const MAX_OUTPUT: usize = 64 << 20;

/// A program that runs in the guest. Dropped, it is killed.
#[derive(Debug)]
pub struct Running<'a> {
    guest: &'a Guest,
    id: CallId,
    doing: String,
    limit: Option<Duration>,
    deadline: Option<Instant>,
    arrivals: Receiver<Arrival>,
    /// The kernel's complaint, and when to give up because of it.
    trouble: Option<(Complaint, Instant)>,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    /// Whether nothing of the program is left to be killed.
    over: bool,
}

impl<'a> Running<'a> {
    /// A call that was just made. Only a program needs to be killed when the caller stops waiting
    /// for it.
    pub(super) fn new(
        guest: &'a Guest,
        id: CallId,
        doing: String,
        limit: Option<Duration>,
        arrivals: Receiver<Arrival>,
        program: bool,
    ) -> Self {
        Self {
            guest,
            id,
            doing,
            limit,
            deadline: limit.map(|limit| Instant::now() + limit),
            arrivals,
            trouble: None,
            stdout: Vec::new(),
            stderr: Vec::new(),
            over: !program,
        }
    }

    /// Waits for the answer of a call that runs no program.
    pub(super) fn answer(mut self) -> Result<Answer> {
        loop {
            match self.next()? {
                Arrival::Answered(Ok(answer)) => return Ok(answer),
                Arrival::Answered(Err(failure)) => return Err(self.refused(failure)),
                // `next` remembers that the kernel broke.
                Arrival::Broken(_) | Arrival::Output(..) | Arrival::Ended(_) => {}
            }
        }
    }

    /// The error that the guest is gone.
    pub(super) fn gone(&self) -> Error {
        self.guest.gone(self.doing.clone())
    }

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
    /// As [`wait`](Self::wait), and when it ends without having printed the text.
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

    /// Waits for its end, and passes on its output as it arrives.
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

    /// As [`stream`](Self::stream), until `print` breaks off because the output is not read any
    /// more. The program is killed then, and there is no status.
    ///
    /// # Errors
    ///
    /// As [`wait`](Self::wait).
    pub fn stream_while(
        mut self,
        mut print: impl FnMut(Stream, &[u8]) -> ControlFlow<()>,
    ) -> Result<Option<Status>> {
        loop {
            match self.next()? {
                Arrival::Output(stream, bytes) => {
                    if print(stream, &bytes).is_break() {
                        return Ok(None);
                    }
                }
                Arrival::Ended(end) => return self.end(end).map(Some),
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
        self.signal(Signal::KILL.as_raw(), Recipient::Process)
    }

    /// Takes the next arrival. Returns how the program ended, if this was its end.
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

    /// The next arrival. Gives up at the deadline, and soon after the kernel broke.
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
            Err(RecvTimeoutError::Disconnected) => Err(self.gone()),
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
        self.guest.arrivals.forget(self.id);
        if !self.over {
            // The answer is not waited for, and nothing could be done without one.
            let _ = self.guest.tell(&Call {
                id: self.guest.next.fetch_add(1, Ordering::Relaxed),
                request: Request::Signal {
                    program: self.id,
                    signal: Signal::KILL.as_raw(),
                    recipient: Recipient::Group,
                },
            });
        }
    }
}
