//! A socket that the daemon listens on, and its file.

use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{lchown, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{umask, Mode};
use rustix::net::{connect, socket_with, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::error::Error;

/// The permissions of a socket whose group was chosen: its owner and that group can connect.
const GROUP_MODE: u32 = 0o660;

/// Which users can connect to a socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// The group of its file.
    pub group: Option<u32>,
    /// The permissions of its file: the right to write is the right to connect. By default those
    /// that the mask of the process leaves, or 0660 if a group is set.
    pub mode: Option<u32>,
}

impl Access {
    /// Only its owner.
    pub(super) const PRIVATE: Self = Self {
        group: None,
        mode: Some(0o600),
    };
}

/// A listening socket. Its file is removed in the end, if it is still the same file.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    file: Option<SocketFile>,
}

impl Socket {
    /// Listens on a path. Replaces a socket on which no process listens any more.
    ///
    /// Call it while the process has one thread: it changes the mask of the process for a moment.
    pub(super) fn listen(path: &Path, access: Access) -> Result<Self, Error> {
        let cannot = |error| Error::Listen(path.to_owned(), error);
        // Two daemons that find the same dead socket must not both replace it. The second one waits,
        // and then finds that the first one listens.
        let _one_at_a_time = lock_folder(path).map_err(cannot)?;
        clear_the_way(path)?;
        let Access { group, mode } = access;
        let mode = mode.or(group.map(|_| GROUP_MODE));
        // No process can connect before the file is as it should be.
        let before = mode.map(|_| umask(Mode::from_bits_truncate(0o177)));
        let bound = UnixListener::bind(path);
        if let Some(before) = before {
            umask(before);
        }
        let socket = Self {
            listener: bound.map_err(cannot)?,
            file: SocketFile::at(path),
        };
        if let Some(group) = group {
            lchown(path, None, Some(group)).map_err(cannot)?;
        }
        if let Some(mode) = mode {
            std::fs::set_permissions(path, Permissions::from_mode(mode)).map_err(cannot)?;
        }
        Ok(socket)
    }

    /// A socket that another process made, which also removes its file.
    pub(super) fn inherited(listener: UnixListener) -> Self {
        Self {
            listener,
            file: None,
        }
    }

    /// Hands the responsibility for the file over: it is no longer removed here.
    pub(super) fn hand_over_file(&mut self) -> Option<SocketFile> {
        self.file.take()
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
        if let Some(file) = self.file.take() {
            if let Err(error) = file.remove() {
                log::warn!("cannot remove {}: {error}", file.path.display());
            }
        }
    }
}

/// The file of a socket.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn at(path: &Path) -> Option<Self> {
        let identity = identity(path)?;
        Some(Self {
            path: path.to_owned(),
            identity,
        })
    }

    /// Removes the file, unless it is another one by now: if ours was removed, another daemon's may
    /// be there.
    pub(super) fn remove(&self) -> io::Result<()> {
        if identity(&self.path) != Some(self.identity) {
            return Ok(());
        }
        std::fs::remove_file(&self.path)
    }
}

/// The identity of the file at a path. No other file has the same numbers as long as a socket is
/// bound to it.
fn identity(path: &Path) -> Option<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Waits until no other daemon makes a socket in the folder of `path`. There is no lock, and so
/// `None`, if the folder cannot be read.
fn lock_folder(path: &Path) -> io::Result<Option<Flock<File>>> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut folder = match File::open(folder) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(None),
        opened => opened?,
    };
    loop {
        match Flock::lock(folder, FlockArg::LockExclusive) {
            Ok(lock) => return Ok(Some(lock)),
            Err((again, Errno::EINTR)) => folder = again,
            Err((_, errno)) => return Err(errno.into()),
        }
    }
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
    match is_in_use(path) {
        Ok(true) => Err(Error::InUse(path.to_owned())),
        Ok(false) => std::fs::remove_file(path).map_err(cannot),
        Err(error) => Err(cannot(error)),
    }
}

/// Whether a process listens on a socket.
fn is_in_use(path: &Path) -> io::Result<bool> {
    let address = SocketAddrUnix::new(path)?;
    // A process that listens and does not accept must not keep this one waiting.
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let probe = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match connect(&probe, &address) {
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Ok(true),
        Err(rustix::io::Errno::CONNREFUSED) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}
