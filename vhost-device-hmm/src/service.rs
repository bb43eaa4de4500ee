//! Tells systemd what the daemon is doing, as `sd_notify(3)` defines.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use sd_notify::NotifyState;

/// The variable with the name of the service manager's socket.
const SOCKET: &str = "NOTIFY_SOCKET";

/// The service manager, if there is one. It is connected to at the start: a sandbox lets no process
/// connect later.
#[derive(Debug)]
pub struct ServiceManager(Option<UnixDatagram>);

impl ServiceManager {
    /// The service manager that has started this process, if any.
    ///
    /// # Errors
    ///
    /// When its socket cannot be connected to.
    pub fn of_this_process() -> io::Result<Self> {
        std::env::var_os(SOCKET)
            .map(|name| connect(&name))
            .transpose()
            .map(Self)
    }

    /// Tells it what has changed.
    pub fn tell(&self, news: &[NotifyState<'_>]) {
        let Some(manager) = &self.0 else {
            return;
        };
        let lines: String = news.iter().map(|line| format!("{line}\n")).collect();
        if let Err(error) = manager.send(lines.as_bytes()) {
            log::info!("systemd cannot be told what happens: {error}");
        }
    }
}

fn connect(name: &OsStr) -> io::Result<UnixDatagram> {
    let manager = UnixDatagram::unbound()?;
    match name.as_bytes().strip_prefix(b"@") {
        Some(name) => manager.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        None => manager.connect(name)?,
    }
    // A manager that does not read holds up no thread.
    manager.set_nonblocking(true)?;
    Ok(manager)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_told_by_a_path_or_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("hmm-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let by_name = UnixDatagram::bind_addr(&address).unwrap();
        for (manager, name) in [
            (by_path, path.as_os_str().to_owned()),
            (by_name, format!("@{name}").into()),
        ] {
            let connected = ServiceManager(Some(connect(&name).unwrap()));
            connected.tell(&[NotifyState::Ready, NotifyState::Status("waiting")]);
            let mut news = [0; 64];
            let length = manager.recv(&mut news).unwrap();
            assert_eq!(&news[..length], b"READY=1\nSTATUS=waiting\n");
        }
    }

    #[test]
    fn a_manager_that_has_gone_or_does_not_read_does_no_harm() {
        let (ours, theirs) = UnixDatagram::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        let manager = ServiceManager(Some(ours));
        for _ in 0..10_000 {
            manager.tell(&[NotifyState::Status("waiting")]);
        }
        drop(theirs);
        manager.tell(&[NotifyState::Stopping]);
        ServiceManager(None).tell(&[NotifyState::Ready]);
    }
}
