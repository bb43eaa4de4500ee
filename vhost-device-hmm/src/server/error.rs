//! Why the daemon cannot serve.

use std::io;
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
    /// The device cannot be made.
    #[error("cannot start the device")]
    Device(#[from] StartError),
    /// The framework refuses to serve.
    #[error("cannot serve: {0}")]
    Serve(DaemonError),
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
