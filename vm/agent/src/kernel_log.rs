//! The kernel log, followed from its first record on.
//!
//! It forwards every record as it appears. What a record means is for the host to decide.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::Arc;
use std::thread;

use anyhow::{Context, Result};
use hmm_agent::protocol::{Answer, CallId, Event, Record};
use rustix::event::{poll, PollFd, PollFlags};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::port::Events;
use crate::wake::Wake;

const LOG: &str = "/dev/kmsg";

/// The kernel's own limit for one record, its header and its dictionary.
const MAX_RECORD: usize = 8192;

/// The thread that follows the log, seen from the others.
pub(crate) struct KernelLog {
    flushes: Sender<CallId>,
    wake: Arc<Wake>,
}

impl KernelLog {
    /// Starts to forward the log.
    ///
    /// # Errors
    ///
    /// When the log cannot be opened.
    pub(crate) fn follow(events: Arc<Events>) -> Result<Self> {
        let not_blocking = i32::try_from(OFlags::NONBLOCK.bits())?;
        let log = OpenOptions::new()
            .read(true)
            .custom_flags(not_blocking)
            .open(LOG)
            .with_context(|| format!("opening {LOG}"))?;
        let wake = Arc::new(Wake::new()?);
        let (flushes, requested) = mpsc::channel();
        let follower = Follower {
            log,
            wake: Arc::clone(&wake),
            requested,
            events,
        };
        thread::Builder::new()
            .name("kernel-log".into())
            .spawn(move || follower.run())?;
        Ok(Self { flushes, wake })
    }

    /// Answers `call` when all records that exist now have been sent.
    ///
    /// # Errors
    ///
    /// When the follower is gone.
    pub(crate) fn flush(&self, call: CallId) -> io::Result<()> {
        self.flushes.send(call).map_err(io::Error::other)?;
        self.wake.raise()
    }
}

/// Writes a line into the kernel log.
///
/// # Errors
///
/// When the log cannot be written.
pub(crate) fn write_line(line: &str) -> io::Result<()> {
    // Without the line's end the kernel would keep the record open, and hidden, for a continuation.
    OpenOptions::new()
        .write(true)
        .open(LOG)?
        .write_all(format!("{line}\n").as_bytes())
}

struct Follower {
    log: File,
    wake: Arc<Wake>,
    requested: Receiver<CallId>,
    events: Arc<Events>,
}

impl Follower {
    fn run(mut self) {
        // Without the host or the log the thread has nothing left to do.
        while self.step().is_ok() {}
    }

    fn step(&mut self) -> io::Result<()> {
        let mut sources = [
            PollFd::new(&self.log, PollFlags::IN),
            PollFd::new(&*self.wake, PollFlags::IN),
        ];
        match poll(&mut sources, None) {
            Err(Errno::INTR) => return Ok(()),
            other => other?,
        };
        // Requests are taken before the log is drained, so that all that a request must see is sent
        // before its answer.
        self.wake.lower()?;
        let flushes: Vec<CallId> = self.requested.try_iter().collect();
        self.drain()?;
        for call in flushes {
            self.events.send(&Event::Answered {
                call,
                result: Ok(Answer::Done),
            })?;
        }
        Ok(())
    }

    fn drain(&mut self) -> io::Result<()> {
        let mut buffer = [0; MAX_RECORD];
        loop {
            match self.log.read(&mut buffer) {
                Ok(length) => {
                    if let Some(record) = parse(&buffer[..length]) {
                        self.events.send(&Event::Logged(record))?;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                // Records were overwritten before they were read: the host sees the
                // gap in the sequence numbers.
                Err(error) if error.raw_os_error() == Some(Errno::PIPE.raw_os_error()) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Parses `prefix,sequence,microseconds,flags[,…];text\n[ KEY=value\n]…`.
fn parse(record: &[u8]) -> Option<Record> {
    let record = String::from_utf8_lossy(record);
    let (header, text) = record.lines().next()?.split_once(';')?;
    let mut fields = header.split(',');
    let prefix: u32 = fields.next()?.parse().ok()?;
    Some(Record {
        sequence: fields.next()?.parse().ok()?,
        microseconds: fields.next()?.parse().ok()?,
        level: u8::try_from(prefix & 7).ok()?,
        text: text.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_parsed_and_its_dictionary_left_out() {
        let record = parse(b"12,345,6789,-,caller=T1;hello; world\n SUBSYSTEM=pci\n").unwrap();
        assert_eq!(
            record,
            Record {
                sequence: 345,
                microseconds: 6789,
                level: 4,
                text: "hello; world".into()
            }
        );
    }

    #[test]
    fn what_is_not_a_record_is_not_taken_for_one() {
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"no header"), None);
        assert_eq!(parse(b"x,y,z,-;text\n"), None);
    }
}
