//! The virtio-serial port to the host.
//!
//! It finds the port by its name and shares its writing side. It knows frames
//! only through [`protocol`](hmm_agent::protocol).

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use hmm_agent::protocol::{self, Call, Event, PORT_NAME};
use rustix::io::Errno;
use rustix::net::netlink::{SocketAddrNetlink, KOBJECT_UEVENT};
use rustix::net::{bind, socket_with, AddressFamily, SocketFlags, SocketType};

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
    // Listening begins before the first look: nothing is missed in between.
    let announcements = announcements().context("listening to the kernel's announcements")?;
    let device = loop {
        if let Some(device) = find().with_context(|| format!("searching {PORTS}"))? {
            break device;
        }
        wait_for_one(&announcements).context("waiting for the host's port")?;
    };
    let port = OpenOptions::new()
        .read(true)
        .write(true)
        .open(&device)
        .with_context(|| format!("opening {}", device.display()))?;
    let events = port.try_clone().context("sharing the port")?;
    Ok((Calls(port), Events(Mutex::new(events))))
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
    // What was announced does not matter: the class directory tells.
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
        // The name comes after the port: until then there is no such file.
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
}
