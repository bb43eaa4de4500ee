//! A connection of the daemon with itself.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};

/// A connection that the framework takes at one end, since it takes connections only where it
/// listens. At the other end is the door.
#[derive(Debug)]
pub(super) struct Passage {
    /// Where the connection is pending. Another process may connect there, too.
    pub(super) listener: UnixListener,
    pub(super) inside: UnixStream,
}

impl Passage {
    pub(super) fn new() -> io::Result<Self> {
        // An abstract name, without a file. No other process knows it before it is used.
        let random = RandomState::new().hash_one(std::process::id());
        let name = format!("vhost-device-hmm-{}-{random:x}", std::process::id());
        let address = SocketAddr::from_abstract_name(name)?;
        let listener = UnixListener::bind_addr(&address)?;
        let inside = UnixStream::connect_addr(&address)?;
        Ok(Self { listener, inside })
    }
}
