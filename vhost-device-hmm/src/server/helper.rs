//! The helper of a daemon in a sandbox: a small process that may do two things which the sandbox
//! denies the daemon, to connect sockets and to remove the files of the daemon's own ones.
//!
//! It takes a byte that says which, and no other data. It ends with the daemon, however that ends.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::time::Duration;

use nix::libc::{self, STDERR_FILENO};
use nix::sys::prctl;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, fork, ForkResult};
use rustix::net::{
    recvmsg, sendmsg, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::passage::Passage;
use super::socket::SocketFile;
use crate::sandbox;

/// How long the helper may take for a request: longer than it ever does.
const PATIENCE: Duration = Duration::from_secs(10);

/// Asks for a passage.
const CONNECT: u8 = b'c';
/// Asks for the removal of the files.
const REMOVE: u8 = b'r';

/// The daemon's end of the helper. The files are removed when it is dropped.
#[derive(Debug)]
pub(super) struct Helper(UnixStream);

impl Helper {
    /// Starts the helper, which becomes responsible for the files. The process must have one thread.
    pub(super) fn start(files: Vec<SocketFile>) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        // SAFETY: the process has one thread, so that no lock is held by a thread which the new
        // process does not have.
        match unsafe { fork() }? {
            ForkResult::Parent { .. } => {}
            ForkResult::Child => {
                // Nothing of the daemon's may be dropped in this process, not even by a panic.
                let worked = catch_unwind(AssertUnwindSafe(|| work(theirs, &files)));
                let status = i32::from(!matches!(worked, Ok(Ok(()))));
                // SAFETY: the call ends the process.
                unsafe { libc::_exit(status) }
            }
        }
        Ok(Self(ours))
    }

    /// A connection of the daemon with itself.
    pub(super) fn passage(&self) -> io::Result<Passage> {
        let [listener, inside] = self.ask(CONNECT)?.try_into().map_err(|_| gone())?;
        Ok(Passage {
            listener: UnixListener::from(listener),
            inside: UnixStream::from(inside),
        })
    }

    fn ask(&self, request: u8) -> io::Result<Vec<OwnedFd>> {
        let pieces = [IoSlice::new(std::slice::from_ref(&request))];
        let mut none = SendAncillaryBuffer::default();
        sendmsg(&self.0, &pieces, &mut none, SendFlags::NOSIGNAL)?;
        let mut errno = [0; 4];
        let mut pieces = [IoSliceMut::new(&mut errno)];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            match recvmsg(&self.0, &mut pieces, &mut control, RecvFlags::CMSG_CLOEXEC) {
                Err(rustix::io::Errno::INTR) => {}
                received => break received?,
            }
        };
        if received.bytes != errno.len() {
            return Err(gone());
        }
        let mut descriptors = Vec::new();
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = part {
                descriptors.extend(received);
            }
        }
        match i32::from_ne_bytes(errno) {
            0 => Ok(descriptors),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        if let Err(error) = self.ask(REMOVE) {
            log::warn!("the daemon's sockets cannot be removed: {error}");
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(
        io::ErrorKind::BrokenPipe,
        "the process that connects sockets for the sandbox has ended",
    )
}

/// The helper itself, until the daemon has ended.
fn work(channel: UnixStream, files: &[SocketFile]) -> io::Result<()> {
    let mut channel = leave_descriptors(channel)?;
    // Without it, only lists of processes show another name.
    let _ = prctl::set_name(c"hmm-helper");
    sandbox::confine_helper().map_err(io::Error::other)?;
    let mut request = [0];
    loop {
        match channel.read(&mut request) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        }
        if request == [CONNECT] {
            match Passage::new() {
                Ok(Passage { listener, inside }) => {
                    answer(&channel, 0, &[listener.as_fd(), inside.as_fd()])?;
                }
                Err(error) => answer(&channel, errno(&error), &[])?,
            }
        } else {
            let removed: io::Result<()> = files.iter().try_for_each(SocketFile::remove);
            answer(
                &channel,
                removed.map_or_else(|error| errno(&error), |()| 0),
                &[],
            )?;
        }
    }
}

/// Closes what the process has of the daemon's, above all its sockets: they must end with it.
/// Returns the channel in another descriptor.
fn leave_descriptors(channel: UnixStream) -> io::Result<UnixStream> {
    dup2_stdin(&channel)?;
    let nothing = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdout(&nothing)?;
    dup2_stderr(&nothing)?;
    // Both are closed in what follows.
    std::mem::forget((channel, nothing));
    let first = libc::c_uint::try_from(STDERR_FILENO + 1).map_err(io::Error::other)?;
    // SAFETY: the values that own these descriptors belong to the code of the daemon, to which this
    // process never returns.
    if unsafe { libc::close_range(first, libc::c_uint::MAX, 0) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the channel was just made standard input, which this process uses for nothing else.
    let channel = unsafe { OwnedFd::from_raw_fd(libc::STDIN_FILENO) };
    Ok(UnixStream::from(channel))
}

fn answer(
    channel: &UnixStream,
    errno: i32,
    descriptors: &[std::os::fd::BorrowedFd<'_>],
) -> io::Result<()> {
    let errno = errno.to_ne_bytes();
    let pieces = [IoSlice::new(&errno)];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    sendmsg(channel, &pieces, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn errno(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
