//! The sockets of a daemon: where front ends come from, and where clients of the control socket do.

use std::io;
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use super::error::Error;
use super::helper::Helper;
use super::inherited::{Inherited, Passed};
use super::socket::{Access, Socket};

/// Where front ends come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place<'a> {
    /// A path to listen on.
    Path(&'a Path, Access),
    /// A descriptor that the process was started with, of a socket that listens or is connected to
    /// a front end.
    Descriptor(RawFd),
    /// What systemd passes: a socket that listens, or is connected (`Accept=yes`), and maybe the
    /// control socket.
    Systemd,
}

/// The sockets of a daemon. Files that it made are removed with them.
#[derive(Debug)]
pub struct Sockets {
    pub(super) front_ends: FrontEnds,
    pub(super) control: Option<Socket>,
    /// What a daemon in a sandbox has.
    pub(super) helper: Option<Helper>,
    description: String,
}

/// Where front ends come from.
#[derive(Debug)]
pub(super) enum FrontEnds {
    /// One after the other connects.
    Listening(Socket),
    /// There is one. `None` when it is served.
    Connected(Option<UnixStream>),
}

impl Sockets {
    /// Opens the sockets. Call it first of all: descriptors that the process was started with must
    /// be looked at before it opens any, and it changes the mask of the process for a moment.
    ///
    /// The control socket is only for its owner, if it is made here.
    ///
    /// # Errors
    ///
    /// [`Error`], when the sockets are in use, cannot be made, or are not what they should be.
    pub fn open(place: Place<'_>, control: Option<&Path>) -> Result<Self, Error> {
        let (front_ends, passed) = match place {
            Place::Path(path, access) => {
                let socket = Socket::listen(path, access)?;
                (FrontEnds::Listening(socket), None)
            }
            Place::Descriptor(number) => (Inherited::in_descriptor(number)?.into(), None),
            Place::Systemd => {
                let passed = Passed::by_systemd()?;
                (passed.front_ends.into(), passed.control)
            }
        };
        let control = match (control, passed) {
            (Some(_), Some(_)) => return Err(Error::TwoControlSockets),
            (Some(path), None) => Some(Socket::listen(path, Access::PRIVATE)?),
            (None, passed) => passed.map(Socket::inherited),
        };
        let description = match (&front_ends, place) {
            (_, Place::Path(path, _)) => format!("listening on {}", path.display()),
            (FrontEnds::Listening(_), Place::Descriptor(number)) => {
                format!("listening on descriptor {number}")
            }
            (FrontEnds::Connected(_), Place::Descriptor(number)) => {
                format!("serving descriptor {number}")
            }
            (FrontEnds::Listening(_), Place::Systemd) => "listening on systemd's socket".into(),
            (FrontEnds::Connected(_), Place::Systemd) => "serving systemd's connection".into(),
        };
        Ok(Self {
            front_ends,
            control,
            helper: None,
            description,
        })
    }

    /// Starts a process for what a daemon in a sandbox cannot do with its sockets itself. This
    /// process must have one thread.
    ///
    /// # Errors
    ///
    /// When the system cannot start a process.
    pub fn start_helper(&mut self) -> io::Result<()> {
        let listening = match &mut self.front_ends {
            FrontEnds::Listening(socket) => Some(socket),
            FrontEnds::Connected(_) => None,
        };
        let sockets = listening.into_iter().chain(&mut self.control);
        let files = sockets.filter_map(Socket::hand_over_file).collect();
        self.helper = Some(Helper::start(files)?);
        Ok(())
    }

    /// What the daemon does with them, such as "listening on /run/hmm.sock".
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Whether there is a control socket.
    pub fn have_control(&self) -> bool {
        self.control.is_some()
    }
}

impl From<Inherited> for FrontEnds {
    fn from(inherited: Inherited) -> Self {
        match inherited {
            Inherited::Listening(listener) => Self::Listening(Socket::inherited(listener)),
            Inherited::Connected(stream) => Self::Connected(Some(stream)),
        }
    }
}
