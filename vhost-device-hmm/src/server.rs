//! Listens and serves one front end after the other, until a signal ends it.
//!
//! No front end or guest can keep a signal from being seen: other threads do everything that may
//! take long, and a thread that does not end in time is left behind.

mod door;
mod error;
mod helper;
mod inherited;
mod passage;
mod socket;
mod sockets;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{channel, Receiver};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{poll, PollFd, PollFlags, PollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use vhost::vhost_user::Error as VhostUserError;
use vhost_user_backend::{Error as DaemonError, ShutdownHandle, VhostUserBackend, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EventFd, EFD_CLOEXEC, EFD_NONBLOCK};

use crate::backend::{Backend, Options};
use crate::control_socket::Console;
use crate::device::{Accelerator, DeviceConfig};
use crate::lateness::Lateness;
use door::{Closed, Door, Offer};
pub use error::Error;
use passage::Passage;
pub use socket::Access;
use socket::Socket;
use sockets::FrontEnds;
pub use sockets::{Place, Sockets};

/// How long the threads of a front end may take to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// How many devices may take longer at a time. Each has a device's memory.
const MOST_LATE: usize = 4;

/// The signals that end the daemon, blocked everywhere else from now on.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// Takes the signals. Call it before the process has any other thread: signals are blocked for
    /// threads that are made from now on.
    ///
    /// # Errors
    ///
    /// The system's error.
    pub fn take() -> Result<Self, Error> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGTERM);
        signals.add(Signal::SIGINT);
        signals.thread_block()?;
        Ok(Self(SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?))
    }
}

/// What the daemon is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A front end can connect.
    Waiting,
    /// A front end is served.
    Serving,
    /// It ends.
    Ending,
}

/// Serves until one of the signals comes, or the only front end has gone. Calls `entered` at the
/// start of each stage.
///
/// # Errors
///
/// [`Error`] when it cannot start. A front end that misbehaves is not an error.
pub fn serve(
    sockets: Sockets,
    device: &DeviceConfig,
    options: Options,
    lateness: &Arc<Lateness>,
    signals: &Signals,
    entered: impl Fn(Stage),
) -> Result<(), Error> {
    let mut front_ends = sockets.front_ends;
    let console = Console::new(Arc::clone(lateness));
    if let Some(control) = &sockets.control {
        let listener = control.listener().map_err(Error::Wait)?;
        console.serve(listener).map_err(Error::Thread)?;
    }
    let mut late: Vec<Receiver<()>> = Vec::new();
    loop {
        // Each front end finds a device as it is after power-on.
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let accelerator = Accelerator::with_lateness(device.clone(), Arc::clone(lateness))?;
        let backend = Backend::new(accelerator, options.clone(), memory.clone());
        console.attach(&backend);
        let daemon = VhostUserDaemon::new("vhost-user".into(), Arc::clone(&backend), memory)
            .map_err(Error::Serve)?;
        entered(Stage::Waiting);
        let Some(stream) = front_ends.next(signals)? else {
            entered(Stage::Ending);
            backend.shut_down();
            return Ok(());
        };
        let passage = match &sockets.helper {
            Some(helper) => helper.passage(),
            None => Passage::new(),
        };
        let passage = passage.map_err(Error::Passage)?;
        let connection = Connection::start(stream, passage, daemon, &backend)?;
        drop(backend);
        log::info!("a front end has connected");
        entered(Stage::Serving);
        let signalled = connection.wait(front_ends.listening(), signals)? == Event::Signal;
        if signalled {
            log::info!("ending, as asked by a signal");
        }
        let last = signalled || front_ends.listening().is_none();
        if last {
            entered(Stage::Ending);
        }
        let ended = connection.end()?;
        let in_time = ended.recv_timeout(PATIENCE) != Err(TIMEOUT);
        if last {
            if !in_time {
                log::error!("what serves the front end does not end; it is ended by force");
            }
            return Ok(());
        }
        if !in_time {
            log::warn!("what has served the front end does not end in time; it is left behind");
            late.push(ended);
        }
        late.retain(|ended| ended.try_recv() == Err(EMPTY));
        if late.len() > MOST_LATE {
            return Err(Error::Stuck(late.len()));
        }
        log::info!("the front end has gone; waiting for the next one");
    }
}

impl FrontEnds {
    /// The socket to which more front ends connect, if any can.
    fn listening(&self) -> Option<&Socket> {
        match self {
            Self::Listening(socket) => Some(socket),
            Self::Connected(_) => None,
        }
    }

    /// Waits for the next front end. There is none if a signal comes first, or if the only one was
    /// served.
    fn next(&mut self, signals: &Signals) -> Result<Option<UnixStream>, Error> {
        let socket = match self {
            Self::Connected(stream) => return Ok(stream.take()),
            Self::Listening(socket) => socket,
        };
        loop {
            if wait(signals, &[socket])? == Event::Signal {
                log::info!("ending, as asked by a signal");
                return Ok(None);
            }
            if let Some(stream) = socket.accept().map_err(Error::Wait)? {
                return Ok(Some(stream));
            }
        }
    }
}

const TIMEOUT: std::sync::mpsc::RecvTimeoutError = std::sync::mpsc::RecvTimeoutError::Timeout;
const EMPTY: std::sync::mpsc::TryRecvError = std::sync::mpsc::TryRecvError::Empty;

/// A front end that is served.
struct Connection {
    backend: Arc<Backend>,
    door: Arc<Door>,
    framework: ShutdownHandle,
    /// Signalled when the connection has to end.
    over: Arc<EventFd>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Connection {
    fn start(
        stream: UnixStream,
        passage: Passage,
        mut daemon: VhostUserDaemon<Arc<Backend>>,
        backend: &Arc<Backend>,
    ) -> Result<Self, Error> {
        let offer = Offer {
            features: backend.features(),
            protocol: backend.protocol_features().bits(),
        };
        let (door, mut listener) = Door::new(stream, offer, passage);
        daemon.start(&mut listener).map_err(Error::Serve)?;
        if !door::is_alone(&listener).map_err(Error::Wait)? {
            log::warn!("another process has connected instead; the front end is cut off");
            door.close();
        }
        let gone = || Error::Wait(io::ErrorKind::NotConnected.into());
        let framework = daemon.shutdown_handle().ok_or_else(gone)?;
        let over = EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).map_err(Error::Wait)?;
        let mut connection = Self {
            backend: Arc::clone(backend),
            door: Arc::new(door),
            framework,
            over: Arc::new(over),
            threads: Vec::new(),
        };
        let over = Arc::clone(&connection.over);
        backend.when_unable(move || tell(&over));

        let door = Arc::clone(&connection.door);
        connection.spawn("door-in", move || match door.pass_in() {
            Closed::Gone => {}
            closed => log::warn!("the front end was cut off: {closed}"),
        })?;
        let door = Arc::clone(&connection.door);
        connection.spawn("door-out", move || door.pass_out())?;
        connection.spawn("framework", move || {
            match daemon.wait() {
                Ok(())
                | Err(DaemonError::HandleRequest(
                    VhostUserError::Disconnected | VhostUserError::PartialMessage,
                )) => {}
                // Also if a guest puts its rings where there is no memory.
                Err(error) => log::warn!("the front end was cut off: {error}"),
            }
        })?;
        Ok(connection)
    }

    /// Starts a thread whose end ends the connection.
    fn spawn(&mut self, name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Error> {
        let over = Arc::clone(&self.over);
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            work();
            tell(&over);
        });
        self.threads.push(thread.map_err(Error::Thread)?);
        Ok(())
    }

    /// Waits until the connection has to end, or a signal comes. `socket` is where other front ends
    /// connect meanwhile.
    fn wait(&self, socket: Option<&Socket>, signals: &Signals) -> Result<Event, Error> {
        // SAFETY: the descriptor is open as long as its owner lives, which is borrowed here.
        let over = unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&*self.over)) };
        let Some(socket) = socket else {
            return wait(signals, &[&over]);
        };
        match wait(signals, &[&over, socket])? {
            Event::Ready(1) => {
                log::warn!("another front end has connected; it waits until this one has gone");
                wait(signals, &[&over])
            }
            event => Ok(event),
        }
    }

    /// Ends the connection. The receiver gets a message when it has ended.
    fn end(self) -> Result<Receiver<()>, Error> {
        let (ended, receiver) = channel();
        let ending = thread::Builder::new().name("ending".into());
        ending
            .spawn(move || {
                self.door.close();
                self.framework.shutdown();
                self.backend.shut_down();
                for thread in self.threads {
                    if thread.join().is_err() {
                        log::error!("a thread of the front end's has ended before its time");
                    }
                }
                drop(self.backend);
                // If it took too long, the receiver has gone.
                let _ = ended.send(());
            })
            .map_err(Error::Thread)?;
        Ok(receiver)
    }
}

fn tell(over: &EventFd) {
    // It fails only if the counter is full, so that the event cannot be missed.
    let _ = over.write(1);
}

/// The result of a wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// A signal that ends the daemon.
    Signal,
    /// There is something to read; this is the first source that has it.
    Ready(usize),
}

/// Waits for a signal or for something to read.
fn wait(signals: &Signals, sources: &[&dyn AsFd]) -> Result<Event, Error> {
    loop {
        let sources = sources.iter().map(|source| source.as_fd());
        let mut events: Vec<_> = std::iter::once(signals.0.as_fd())
            .chain(sources)
            .map(|source| PollFd::new(source, PollFlags::POLLIN))
            .collect();
        match poll(&mut events, PollTimeout::NONE) {
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) => {
                let ready = events.iter().position(|event| event.any().unwrap_or(false));
                return Ok(match ready {
                    Some(0) | None => Event::Signal,
                    Some(number) => Event::Ready(number - 1),
                });
            }
        }
    }
}
