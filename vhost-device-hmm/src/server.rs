//! Listening, one front end after the other, until a signal says to end.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EventFd, EFD_CLOEXEC};

use crate::backend::{Backend, Options};
use crate::device::{Accelerator, DeviceConfig, StartError};

/// Why the daemon cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Somebody listens on the socket already.
    #[error("{} is in use: another process listens on it; stop that one or choose another path",
        .0.display())]
    InUse(PathBuf),
    /// There is something else where the socket should be.
    #[error("{} exists and is not a socket; remove it or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// The socket cannot be made.
    #[error("cannot listen on {}", .0.display())]
    Listen(PathBuf, #[source] io::Error),
    /// There is no device to be had.
    #[error("cannot start the device")]
    Device(#[from] StartError),
    /// The framework refuses.
    #[error("cannot serve: {0}")]
    Serve(DaemonError),
    /// The system refuses.
    #[error("cannot wait for events")]
    Wait(#[source] io::Error),
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Self::Wait(errno.into())
    }
}

/// Serves on a socket until SIGTERM or SIGINT; calls `listening` once a front end can
/// connect. The socket is removed at the end. With `coherent` the guest's CPUs can address
/// device memory.
///
/// Call it before the process has any other thread: signals are blocked for those that
/// are made from here on.
///
/// # Errors
///
/// [`Error`] when it cannot start. A front end that misbehaves is none.
pub fn serve(
    path: &Path,
    device: &DeviceConfig,
    options: Options,
    listening: impl FnOnce(),
) -> Result<(), Error> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;

    clear_the_way(path)?;
    let mut listener =
        Listener::new(path, false).map_err(|error| Error::Listen(path.to_owned(), cause(error)))?;
    let mut listening = Some(listening);
    loop {
        // A front end finds a device as it is after power-on.
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let accelerator = Accelerator::new(device.clone())?;
        let backend = Backend::new(accelerator, options, memory.clone());
        let daemon = VhostUserDaemon::new("vhost-user".into(), Arc::clone(&backend), memory)
            .map_err(Error::Serve)?;
        if let Some(listening) = listening.take() {
            listening();
        }
        let signalled =
            !wait_for_either(&listener, &signals)? || serve_one(daemon, &mut listener, &signals)?;
        backend.shut_down();
        if signalled {
            log::info!("ending, as asked by a signal");
            return Ok(());
        }
        log::info!("the front end has gone; waiting for the next one");
    }
}

/// Serves one front end until it disconnects or a signal comes; returns whether one did.
fn serve_one(
    mut daemon: VhostUserDaemon<Arc<Backend>>,
    listener: &mut Listener,
    signals: &SignalFd,
) -> Result<bool, Error> {
    daemon.start(listener).map_err(Error::Serve)?;
    log::info!("a front end has connected");
    let shutdown = daemon.shutdown_handle();
    let ended = EventFd::new(EFD_CLOEXEC).map_err(Error::Wait)?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            match daemon.wait() {
                Ok(())
                | Err(DaemonError::HandleRequest(
                    VhostUserError::Disconnected | VhostUserError::PartialMessage,
                )) => {}
                // Also what a guest brings about that puts its rings where no memory is.
                Err(error) => log::warn!("the front end was cut off: {error}"),
            }
            if let Err(error) = ended.write(1) {
                log::error!("cannot signal the end of a connection: {error}");
            }
        });
        let disconnected = wait_for_either(&ended, signals);
        if let (Ok(false) | Err(_), Some(shutdown)) = (&disconnected, &shutdown) {
            shutdown.shutdown();
        }
        disconnected.map(|disconnected| !disconnected)
    })
}

/// Waits for something to read or for a signal; returns whether it was the former.
fn wait_for_either(readable: &impl AsRawFd, signals: &SignalFd) -> Result<bool, Error> {
    // SAFETY: the descriptor is open as long as its owner lives, which is borrowed here.
    let readable = unsafe { BorrowedFd::borrow_raw(readable.as_raw_fd()) };
    let mut events = [
        PollFd::new(signals.as_fd(), PollFlags::POLLIN),
        PollFd::new(readable, PollFlags::POLLIN),
    ];
    loop {
        match poll(&mut events, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) => {
                let [signal, _] = &events;
                return Ok(!signal.any().unwrap_or(false));
            }
        }
    }
}

/// Makes sure that a socket can be made at a path: a dead one is removed.
fn clear_the_way(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::FileTypeExt;
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

fn cause(error: VhostUserError) -> io::Error {
    match error {
        VhostUserError::SocketError(error) => error,
        other => io::Error::other(other),
    }
}
