//! The records of the device's daemon: one JSON object a line.
//!
//! The daemon writes them with [`Record`], and everything else reads them with it.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The first line of a file, before the version.
pub const MAGIC: &str = "virtio-hmm device trace";

/// The version of the form. A new member, or a new kind of event, does not change it.
pub const VERSION: u32 = 1;

/// The first line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// [`MAGIC`].
    pub trace: Cow<'static, str>,
    /// [`VERSION`].
    pub version: u32,
}

/// Something that the device did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The host's monotonic clock when it began, in nanoseconds.
    pub at: u64,
    /// How long it lasted, in nanoseconds; zero for a moment.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lasted: u64,
    /// The daemon's thread.
    pub thread: Arc<str>,
    /// The space that it was about, if it was about one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub space: Option<u32>,
    /// What it was.
    #[serde(flatten)]
    pub event: Event,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde passes a reference"
)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A word of the program's, or of a file.
pub type Word = Cow<'static, str>;

/// What the device did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A request of the control or dma queue was carried out and answered.
    Request {
        /// The queue.
        queue: Word,
        /// The operation, as the specification writes it, if the request has one.
        operation: Option<Word>,
    },
    /// A job has come.
    Queued {
        /// Its name.
        job: u64,
        /// What it does.
        operation: Word,
    },
    /// An engine worked on a job.
    Turn {
        /// Its name.
        job: u64,
        /// Why it stopped: `paused`, `fault` or `ended`.
        stop: Word,
    },
    /// A job waits for a page.
    Fault {
        /// The job.
        job: u64,
        /// The address.
        address: u64,
        /// The rights that it needs there.
        access: u32,
    },
    /// The driver has answered a fault.
    Answer {
        /// The job that has waited.
        job: u64,
        /// Whether it goes on; it ends otherwise.
        retry: bool,
    },
    /// A job has ended.
    Ended {
        /// Its name.
        job: u64,
        /// How, as the device's own words say it.
        how: Word,
    },
    /// The device was late on purpose.
    Late {
        /// The point.
        point: Word,
    },
    /// So many records of a thread were lost, because the file could not be written in time.
    Lost {
        /// How many.
        records: u64,
    },
}

/// What a device's file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// The records, in the order of their times.
    pub records: Vec<Record>,
    /// How many were lost.
    pub lost: u64,
}

/// Why a file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is something else.
    #[error("this is no trace of a device: its first line is not {{\"trace\":\"{MAGIC}\",\"version\":{VERSION}}}")]
    Stranger,
    /// It has another version.
    #[error("this trace has version {0}, and this program reads version {VERSION}; use the program of the same build")]
    Version(u32),
    /// A line is no record.
    #[error("line {0} is no record")]
    Line(usize, #[source] serde_json::Error),
}

impl Device {
    /// Reads a file. Its last line may be unfinished, as that of a daemon that was killed.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn read(text: &str) -> Result<Self, Error> {
        let mut lines = text.lines().enumerate();
        let header = lines
            .next()
            .and_then(|(_, line)| serde_json::from_str::<Header>(line).ok());
        match header {
            Some(Header { trace, .. }) if trace != MAGIC => return Err(Error::Stranger),
            None => return Err(Error::Stranger),
            Some(Header { version, .. }) if version != VERSION => {
                return Err(Error::Version(version))
            }
            Some(_) => {}
        }
        let mut device = Self::default();
        let whole = text.ends_with('\n');
        while let Some((index, line)) = lines.next() {
            let record: Record = match serde_json::from_str(line) {
                Ok(record) => record,
                Err(_) if lines.clone().next().is_none() && !whole => break,
                Err(error) => return Err(Error::Line(index + 1, error)),
            };
            match record.event {
                Event::Lost { records } => device.lost += records,
                _ => device.records.push(record),
            }
        }
        device.records.sort_by_key(|record| record.at);
        Ok(device)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> String {
        format!("{{\"trace\":\"{MAGIC}\",\"version\":{VERSION}}}\n")
    }

    #[test]
    fn what_is_written_is_read() {
        let record = |at, event| Record {
            at,
            lasted: 0,
            thread: "engine 0".into(),
            space: Some(3),
            event,
        };
        let records = [
            record(
                9,
                Event::Turn {
                    job: 1,
                    stop: "paused".into(),
                },
            ),
            record(
                4,
                Event::Fault {
                    job: 1,
                    address: 4096,
                    access: 1,
                },
            ),
            record(5, Event::Lost { records: 8 }),
        ];
        let lines = records
            .iter()
            .map(|record| serde_json::to_string(record).unwrap() + "\n");
        let text = header() + &lines.collect::<String>();
        let device = Device::read(&text).unwrap();
        assert_eq!(device.lost, 8);
        assert_eq!(device.records, [records[1].clone(), records[0].clone()]);
    }

    #[test]
    fn an_unfinished_last_line_is_left_out_and_another_is_an_error() {
        let line = "{\"at\":1,\"thread\":\"x\",\"event\":\"late\",\"point\":\"dma.taken\"}\n";
        let text = header() + line + "{\"at\":2,\"thr";
        assert_eq!(Device::read(&text).unwrap().records.len(), 1);
        let text = header() + "{\"at\":2,\"thr\n" + line;
        assert!(matches!(Device::read(&text), Err(Error::Line(2, _))));
    }

    #[test]
    fn other_files_are_refused() {
        assert!(matches!(Device::read(""), Err(Error::Stranger)));
        assert!(matches!(Device::read("hello\n"), Err(Error::Stranger)));
        let other = format!("{{\"trace\":\"{MAGIC}\",\"version\":2}}\n");
        assert!(matches!(Device::read(&other), Err(Error::Version(2))));
    }
}
