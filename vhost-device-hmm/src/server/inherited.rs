//! Sockets that the process was started with: by a program that manages virtual machines, or by
//! systemd.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::libc;
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

use super::error::Error;

/// The name by which systemd passes the control socket (`FileDescriptorName=`).
const CONTROL: &str = "control";

/// A socket that the process was started with.
#[derive(Debug)]
pub(super) enum Inherited {
    /// Front ends connect to it.
    Listening(UnixListener),
    /// A front end is connected to it.
    Connected(UnixStream),
}

impl Inherited {
    /// The socket in a descriptor.
    pub(super) fn in_descriptor(number: RawFd) -> Result<Self, Error> {
        let cannot = |error| Error::Descriptor(number, error);
        let socket = duplicate(number).map_err(cannot)?;
        let is_stream = socket_domain(&socket).map_err(|errno| cannot(errno.into()))?
            == AddressFamily::UNIX
            && socket_type(&socket).map_err(|errno| cannot(errno.into()))? == SocketType::STREAM;
        if !is_stream {
            return Err(Error::NotAStream(number));
        }
        if socket_acceptconn(&socket).map_err(|errno| cannot(errno.into()))? {
            let listener = UnixListener::from(socket);
            // The file's flags are shared with the process that made it.
            listener.set_nonblocking(false).map_err(cannot)?;
            return Ok(Self::Listening(listener));
        }
        let stream = UnixStream::from(socket);
        stream.peer_addr().map_err(cannot)?;
        stream.set_nonblocking(false).map_err(cannot)?;
        Ok(Self::Connected(stream))
    }
}

/// The sockets that systemd has passed.
#[derive(Debug)]
pub(super) struct Passed {
    pub(super) front_ends: Inherited,
    pub(super) control: Option<UnixListener>,
}

impl Passed {
    /// Takes what systemd has passed to this process.
    pub(super) fn by_systemd() -> Result<Self, Error> {
        let passed = sd_notify::listen_fds_with_names().map_err(Error::Passed)?;
        let (mut front_ends, mut control) = (None, None);
        for (number, name) in passed {
            match (Inherited::in_descriptor(number)?, &*name) {
                (Inherited::Listening(listener), CONTROL) if control.is_none() => {
                    control = Some(listener);
                }
                (socket, name) if name != CONTROL && front_ends.is_none() => {
                    front_ends = Some(socket);
                }
                _ => return Err(Error::OnePurposeEach),
            }
        }
        let front_ends = match front_ends {
            Some(front_ends) => front_ends,
            None if control.is_none() => return Err(Error::NoSocket),
            None => return Err(Error::OnePurposeEach),
        };
        Ok(Self {
            front_ends,
            control,
        })
    }
}

/// A descriptor of the same file as a descriptor that the process was started with, which stays
/// open: what it is for was not decided here.
fn duplicate(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the call only looks the number up.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was open just now. No other part of the process owns one with a number
    // from outside, and so none closes it before the end of this function.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    borrowed.try_clone_to_owned()
}
