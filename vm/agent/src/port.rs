//! The port to the host: one of virtio-serial, or a serial line.
//!
//! It finds the port by its name, unless the kernel's command line names a line, and shares its
//! writing side. It knows frames only through [`protocol`](hmm_agent::protocol).

use std::env;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use hmm_agent::protocol::{self, Call, Event, LINE_VARIABLE, PORT_NAME};
use rustix::io::Errno;
use rustix::net::netlink::{SocketAddrNetlink, KOBJECT_UEVENT};
use rustix::net::{bind, socket_with, AddressFamily, SocketFlags, SocketType};
use rustix::termios::{tcdrain, tcgetattr, tcsetattr, OptionalActions};

/// Where the kernel lists the ports.
const PORTS: &str = "/sys/class/virtio-ports";

/// The multicast group in which the kernel announces its own events.
const KERNEL_EVENTS: u32 = 1;

/// The side on which the host's calls arrive.
pub(crate) struct Calls(File);

/// The side on which events leave; every thread of the agent writes to it.
pub(crate) struct Events(Mutex<File>);

/// Opens the port, waiting until the kernel has found it.
///
/// # Errors
///
/// When the kernel's announcements or the port cannot be opened.
pub(crate) fn open() -> Result<(Calls, Events)> {
    let port = match env::var_os(LINE_VARIABLE) {
        Some(line) => open_line(&Path::new("/dev").join(line))?,
        None => open_port()?,
    };
    let events = port.try_clone().context("sharing the port")?;
    Ok((Calls(port), Events(Mutex::new(events))))
}

/// Opens a serial line, which carries bytes as they are.
fn open_line(device: &Path) -> Result<File> {
    let line = open_device(device)?;
    let mut modes = tcgetattr(&line).context("a line's modes")?;
    modes.make_raw();
    tcsetattr(&line, OptionalActions::Flush, &modes).context("a line's modes")?;
    Ok(line)
}

fn open_device(device: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)
        .with_context(|| format!("opening {}", device.display()))
}

fn open_port() -> Result<File> {
    // Listening begins before the first look, so that no port is missed in between.
    let announcements = announcements().context("listening to the kernel's announcements")?;
    let device = loop {
        if let Some(device) = find().with_context(|| format!("searching {PORTS}"))? {
            break device;
        }
        wait_for_one(&announcements).context("waiting for the host's port")?;
    };
    open_device(&device)
}

fn announcements() -> io::Result<OwnedFd> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        Some(KOBJECT_UEVENT),
    )?;
    bind(&socket, &SocketAddrNetlink::new(0, KERNEL_EVENTS))?;
    Ok(socket)
}

fn wait_for_one(announcements: &OwnedFd) -> io::Result<()> {
    // The announcement itself does not matter: the class directory has the ports.
    let mut ignored = [0; 64];
    match rustix::io::read(announcements, &mut ignored) {
        // Interrupted, or announcements were lost: look again in either case.
        Ok(_) | Err(Errno::INTR | Errno::NOBUFS) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn find() -> io::Result<Option<PathBuf>> {
    let ports = match fs::read_dir(PORTS) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    for port in ports {
        let port = port?;
        // The kernel adds the name after the port: until then the file is missing.
        if let Ok(name) = fs::read_to_string(port.path().join("name")) {
            if name.trim_end() == PORT_NAME {
                return Ok(Some(PathBuf::from("/dev").join(port.file_name())));
            }
        }
    }
    Ok(None)
}

impl Calls {
    /// The next call; `None` when the host is gone.
    ///
    /// # Errors
    ///
    /// When the port fails or the host speaks another protocol.
    pub(crate) fn next(&mut self) -> io::Result<Option<Call>> {
        protocol::receive(&mut self.0)
    }
}

impl Events {
    /// Sends an event. It blocks until the host's end is there and has room.
    ///
    /// # Errors
    ///
    /// When the host is gone.
    pub(crate) fn send(&self, event: &Event) -> io::Result<()> {
        let mut port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        protocol::send(&mut *port, event)
    }

    /// Runs `act` while no event is in transit: all sent events have left the port, and no other
    /// follows.
    ///
    /// # Errors
    ///
    /// When the port does not transmit its data.
    pub(crate) fn pause<T>(&self, act: impl FnOnce() -> T) -> io::Result<T> {
        let port = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match tcdrain(&*port) {
            // When `write` returns, a port of virtio-serial has passed on the data.
            Ok(()) | Err(Errno::NOTTY) => Ok(act()),
            Err(error) => Err(error.into()),
        }
    }
}
