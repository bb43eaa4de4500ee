//! The messages between the fixture on the host and the agent in the guest.
//!
//! Both ends compile this one definition. A message is a frame: its length as a
//! 32-bit little-endian number, then its `postcard` encoding. This module knows
//! frames and nothing of ports, sockets, processes or virtual machines.

use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The name of the virtio-serial port that carries the messages.
pub const PORT_NAME: &str = "hmm.agent";

/// The variable of the first process that names the serial line to use instead of the port, such as
/// `ttyS1`. The kernel's command line sets it.
pub const LINE_VARIABLE: &str = "HMM_LINE";

/// Where the initramfs lists the modules to load at boot, one path on each line.
pub const MODULE_LIST: &str = "/etc/hmm-modules";

/// What the agent writes to the kernel log when it is ready to serve.
///
/// Lines before it come from the boot of the kernel; lines after it are ours.
pub const LOG_MARK: &str = "hmm-agent: ready";

/// The largest frame in bytes, without its length.
///
/// It bounds what either end buffers for the other. Larger files travel in the initramfs.
pub const MAX_FRAME: usize = 1 << 20;

/// The most bytes of a program's output, or of a file, in one message.
pub const MAX_CHUNK: usize = MAX_FRAME - 1024;

/// The number of a request in progress; the host chooses it.
pub type CallId = u32;

/// A message from the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// The answers carry it.
    pub id: CallId,
    /// What to do.
    pub request: Request,
}

/// What the host can ask for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Run a program: answered by [`Event::Output`]s and one [`Event::Ended`].
    Run(Program),
    /// Run a shell on the guest's console: answered by one [`Event::Ended`].
    Shell(Terminal),
    /// Send a signal to a running program.
    Signal {
        /// The call that started the program.
        program: CallId,
        /// The signal's number.
        signal: i32,
        /// The recipient.
        recipient: Recipient,
    },
    /// Load a kernel module.
    LoadModule {
        /// Its file in the guest, compressed when it ends in `.xz`, `.gz` or `.zst`.
        path: String,
        /// Its parameters, as on `insmod`'s command line.
        parameters: String,
    },
    /// Unload a kernel module.
    UnloadModule {
        /// Its name, as in `/proc/modules`.
        name: String,
    },
    /// Read a file of at most [`MAX_CHUNK`] bytes: answered by [`Answer::Contents`].
    ReadFile {
        /// Its path.
        path: String,
    },
    /// Write a file in one `write`, as sysfs and procfs expect.
    WriteFile {
        /// Its path.
        path: String,
        /// What to write.
        contents: Vec<u8>,
    },
    /// Let the system sleep, and answer when it is awake again. No message is sent to the host
    /// meanwhile: a serial line may lose its contents when it sleeps.
    Sleep {
        /// What to write to `/sys/power/state`.
        state: String,
    },
    /// Answer when every kernel log record that exists now has been sent.
    FlushKernelLog,
    /// Answer, then switch the machine off.
    PowerOff,
}

/// A program to run. It has no standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The program, looked up in the agent's path, and its arguments.
    pub arguments: Vec<String>,
    /// Variables added to the agent's environment.
    pub environment: Vec<(String, String)>,
}

/// The person's terminal, at the other end of the guest's console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    /// Its kind, as in `$TERM`.
    pub kind: String,
    /// Its height in characters.
    pub rows: u16,
    /// Its width in characters.
    pub columns: u16,
}

/// The recipient of a signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Recipient {
    /// The program's first process.
    Process,
    /// That process and its descendants, unless they left its process group.
    Group,
}

/// A message from the agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The first message: the guest is ready.
    Hello {
        /// The kernel's release, as `uname -r` prints it.
        release: String,
    },
    /// A program wrote something.
    Output {
        /// The call that started the program.
        call: CallId,
        /// Where it wrote.
        stream: Stream,
        /// What it wrote.
        bytes: Vec<u8>,
    },
    /// A program ended; all it wrote has been sent.
    Ended {
        /// The call that started it.
        call: CallId,
        /// How it ended.
        end: End,
    },
    /// The result of any other call.
    Answered {
        /// The call.
        call: CallId,
        /// The result.
        result: Result<Answer, Failure>,
    },
    /// The kernel logged something.
    Logged(Record),
}

/// A stream of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output.
    Output,
    /// Standard error.
    Error,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// It exited with this status.
    Exited(i32),
    /// This signal killed it.
    Signalled(i32),
    /// It could not be started.
    NotStarted(Failure),
}

/// What a request gave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// It was done.
    Done,
    /// What the file holds.
    Contents(Vec<u8>),
}

/// Why a request could not be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kernel's error number, when the kernel refused.
    pub errno: Option<i32>,
    /// The reason for a person.
    pub reason: String,
}

/// A record of the kernel log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its number: one more than its predecessor's unless records were lost.
    pub sequence: u64,
    /// Microseconds since the kernel started.
    pub microseconds: u64,
    /// The severity: 0 (emergency) to 7 (debug).
    pub level: u8,
    /// The line, with the kernel's escapes for control characters.
    pub text: String,
}

/// Writes one frame.
///
/// # Errors
///
/// When the message is larger than [`MAX_FRAME`] or cannot be written.
pub fn send<T: Serialize>(to: &mut impl Write, message: &T) -> io::Result<()> {
    let body = postcard::to_allocvec(message).map_err(io::Error::other)?;
    let length = u32::try_from(body.len())
        .ok()
        .filter(|_| body.len() <= MAX_FRAME)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the message is too large"))?;
    let mut frame = Vec::with_capacity(size_of::<u32>() + body.len());
    frame.extend_from_slice(&length.to_le_bytes());
    frame.extend_from_slice(&body);
    // One write for the whole frame, so that frames of several writers cannot interleave: a writer
    // holds the port's lock for one call.
    to.write_all(&frame)?;
    to.flush()
}

/// Reads one frame; `None` when the other end closed between two frames.
///
/// # Errors
///
/// When the other end closed within a frame, announced one above [`MAX_FRAME`], or sent bytes that
/// are no `T`.
pub fn receive<T: DeserializeOwned>(from: &mut impl Read) -> io::Result<Option<T>> {
    let mut length = [0; size_of::<u32>()];
    let first = loop {
        match from.read(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => break other?,
        }
    };
    if first == 0 {
        return Ok(None);
    }
    from.read_exact(&mut length[first..])?;
    let length = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
    if length > MAX_FRAME {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a frame of {length} bytes was announced; the limit is {MAX_FRAME}"),
        ));
    }
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    postcard::from_bytes(&body)
        .map(Some)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a_call() -> Call {
        Call {
            id: 7,
            request: Request::Run(Program {
                arguments: vec!["echo".into(), "hello".into()],
                environment: vec![("LANG".into(), "C".into())],
            }),
        }
    }

    #[test]
    fn a_message_arrives_as_it_was_sent() {
        let mut wire = Vec::new();
        send(&mut wire, &a_call()).unwrap();
        let mut rest = wire.as_slice();
        assert_eq!(receive::<Call>(&mut rest).unwrap(), Some(a_call()));
        assert_eq!(receive::<Call>(&mut rest).unwrap(), None);
    }

    #[test]
    fn a_frame_cut_short_is_an_error_and_not_an_end() {
        let mut wire = Vec::new();
        send(&mut wire, &a_call()).unwrap();
        for length in 1..wire.len() {
            let error = receive::<Call>(&mut &wire[..length]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{length} bytes");
        }
    }

    #[test]
    fn an_absurd_length_is_refused_before_anything_is_allocated() {
        let error = receive::<Call>(&mut [0xff; 8].as_slice()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_message_above_the_limit_is_not_sent() {
        let mut wire = Vec::new();
        let event = Event::Output {
            call: 1,
            stream: Stream::Output,
            bytes: vec![0; MAX_FRAME],
        };
        assert!(send(&mut wire, &event).is_err());
        assert!(wire.is_empty(), "nothing of it may reach the wire");
    }

    #[test]
    fn the_largest_chunk_fits_into_a_frame() {
        let mut wire = Vec::new();
        let event = Event::Output {
            call: CallId::MAX,
            stream: Stream::Error,
            bytes: vec![0xff; MAX_CHUNK],
        };
        send(&mut wire, &event).unwrap();
        assert_eq!(receive::<Event>(&mut wire.as_slice()).unwrap(), Some(event));
    }
}
