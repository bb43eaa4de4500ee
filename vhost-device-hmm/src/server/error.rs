//! Why the daemon cannot serve.

use std::io;
use std::os::fd::RawFd;
use std::path::PathBuf;

use nix::errno::Errno;
use vhost_user_backend::Error as DaemonError;

use crate::device::StartError;

/// Why the daemon cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another process listens on the socket already.
    #[error("{} is in use: another process listens on it; stop that one or choose another path",
        .0.display())]
    InUse(PathBuf),
    /// The path of the socket is something else than a socket.
    #[error("{} exists and is not a socket; remove it or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen on {}", .0.display())]
    Listen(PathBuf, #[source] io::Error),
    /// There is no socket.
    #[error(
        "there is no socket to serve: give --socket-path PATH or --fd N, or have systemd pass \
        one by a socket unit"
    )]
    NoSocket,
    /// A descriptor that the process should have been started with cannot be used.
    #[error("descriptor {0} cannot be used; is the program started with it?")]
    Descriptor(RawFd, #[source] io::Error),
    /// A descriptor is of something else than a Unix stream socket.
    #[error("descriptor {0} is not a Unix stream socket")]
    NotAStream(RawFd),
    /// What systemd passes cannot be read.
    #[error("what systemd has passed cannot be read; look at LISTEN_FDS and LISTEN_FDNAMES")]
    Passed(#[source] io::Error),
    /// systemd passes too much, or not what is needed.
    #[error(
        "systemd has to pass one socket for front ends, and at most one that listens for \
        clients with FileDescriptorName=control"
    )]
    OnePurposeEach,
    /// systemd passes a control socket, and another one is asked for.
    #[error("systemd has passed a control socket already; leave out --control")]
    TwoControlSockets,
    /// The device cannot be made.
    #[error("cannot start the device")]
    Device(#[from] StartError),
    /// The framework refuses to serve.
    #[error("cannot serve: {0}")]
    Serve(DaemonError),
    /// The front end cannot be connected to the framework.
    #[error("cannot connect the front end to what serves it")]
    Passage(#[source] io::Error),
    /// A system call failed.
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
    /// The system cannot start a thread.
    #[error("cannot start a thread")]
    Thread(#[source] io::Error),
    /// Too many devices have not ended yet.
    #[error("{0} earlier front ends have gone, but the devices that served them do not end")]
    Stuck(usize),
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::Wait(errno.into())
    }
}
