//! The socket to which front ends connect, and its file.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::stat::{umask, Mode};

use super::error::Error;

/// A listening socket. Its file is removed in the end, if it is still the same file.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    file: Option<(u64, u64)>,
}

impl Socket {
    /// Listens on a path. Replaces a socket on which no process listens any more.
    pub(super) fn listen(path: &Path) -> Result<Self, Error> {
        clear_the_way(path)?;
        let listener =
            UnixListener::bind(path).map_err(|error| Error::Listen(path.to_owned(), error))?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            file: identity(path),
        })
    }

    /// The same for a socket that only its owner can use.
    pub(super) fn listen_privately(path: &Path) -> Result<Self, Error> {
        // The mask is the process's. No other thread makes a file meanwhile: nothing can request
        // one yet.
        let before = umask(Mode::S_IXUSR | Mode::S_IRWXG | Mode::S_IRWXO);
        let socket = Self::listen(path);
        umask(before);
        socket
    }

    /// The same socket, for a thread that listens on it.
    pub(super) fn listener(&self) -> io::Result<UnixListener> {
        self.listener.try_clone()
    }

    /// Accepts a connection that is known to be pending; `None` if the client has gone meanwhile.
    pub(super) fn accept(&self) -> io::Result<Option<UnixStream>> {
        match self.listener.accept() {
            Ok((stream, _)) => Ok(Some(stream)),
            Err(error) => match error.kind() {
                io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            },
        }
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // If our file was removed, another daemon's may be there by now.
        if self.file.is_some() && self.file == identity(&self.path) {
            if let Err(error) = std::fs::remove_file(&self.path) {
                log::warn!("cannot remove {}: {error}", self.path.display());
            }
        }
    }
}

/// The identity of the file at a path. No other file has the same numbers as long as a socket is
/// bound to it.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Makes room for a socket at a path: removes a dead one.
fn clear_the_way(path: &Path) -> Result<(), Error> {
    let cannot = |error| Error::Listen(path.to_owned(), error);
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(cannot(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(Error::NotASocket(path.to_owned()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Ok(_) => Err(Error::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(cannot)
        }
        Err(error) => Err(cannot(error)),
    }
}
