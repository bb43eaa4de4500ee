//! An open node, and the calls that need no binding.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{open, Mode, OFlags};
use rustix::io::Errno;
use virtio_hmm_spec::uapi::{Counters, DeviceState, Info, MAX_DEVICES, MAX_RESIDENCY_PAGES};

use crate::error::{Error, Life, Result, SystemError};
use crate::memory::{page_size, PageRange, PageState};
use crate::sys;

/// An open `/dev/hmmN`.
#[derive(Debug)]
pub struct Device {
    file: OwnedFd,
}

impl Device {
    /// Opens a device.
    ///
    /// # Errors
    ///
    /// Those of `open(2)`.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| SystemError::opening(path, errno))?;
        Ok(Self { file })
    }

    /// The paths of all devices, in ascending order.
    pub fn list() -> Vec<PathBuf> {
        let paths = (0..MAX_DEVICES).map(|number| PathBuf::from(format!("/dev/hmm{number}")));
        paths.filter(|path| path.exists()).collect()
    }

    /// The device's kind and sizes.
    ///
    /// # Errors
    ///
    /// `ENODEV` when it has been removed, `EIO` when it stopped answering.
    pub fn info(&self) -> Result<Info> {
        sys::info(self.file.as_fd()).map_err(|errno| self.error("asking the device", errno))
    }

    /// The counters of driver and device.
    ///
    /// # Errors
    ///
    /// `ENODEV` when it has been removed, `EIO` when it stopped answering, or answered with an
    /// error of its own ([`Error::is_loss`]).
    pub fn counters(&self) -> Result<Counters> {
        sys::counters(self.file.as_fd()).map_err(|errno| self.error("reading the counters", errno))
    }

    /// Where the pages of another process are, which must be bound to this device.
    ///
    /// The answer describes this moment; it may be different in the next.
    ///
    /// # Errors
    ///
    /// `ESRCH` when no such process is bound, `EACCES` when the caller may not read its memory.
    pub fn residency_of(&self, pid: i32, range: PageRange) -> Result<Vec<PageState>> {
        let mut states = vec![0; range.pages()];
        let step = usize::try_from(MAX_RESIDENCY_PAGES).unwrap_or(usize::MAX);
        let mut address = range.address();
        for states in states.chunks_mut(step) {
            sys::residency(self.file.as_fd(), pid, address, states)
                .map_err(|errno| self.error("asking where pages are", errno))?;
            address += (states.len() * page_size()) as u64;
        }
        Ok(states.into_iter().map(PageState::from_raw).collect())
    }

    /// The error of a call about this file that failed.
    pub(crate) fn error(&self, action: &'static str, errno: Errno) -> Error {
        let life = match errno {
            Errno::IO => life(sys::info(self.as_fd()), || sys::is_broken(self.as_fd())),
            // Each of the others has one meaning.
            _ => Life::GoesOn,
        };
        Error::of_device(action, errno, life)
    }
}

/// What `EIO` tells of a device with that description now: it also means that the device answered
/// a single call with an error.
fn life(now: std::result::Result<Info, Errno>, has_lost_the_space: impl FnOnce() -> bool) -> Life {
    match now.map(|info| DeviceState::from_raw(info.state)) {
        Ok(Some(DeviceState::Gone)) | Err(_) => Life::Over,
        Ok(Some(DeviceState::Resetting)) => Life::GivenUp,
        // It may have been restarted since.
        Ok(_) if has_lost_the_space() => Life::GivenUp,
        Ok(_) => Life::GoesOn,
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn in_state(state: DeviceState) -> std::result::Result<Info, Errno> {
        Ok(Info {
            state: state.raw(),
            ..Info::new_zeroed()
        })
    }

    #[test]
    fn only_a_device_that_was_given_up_has_lost_something() {
        let running = || in_state(DeviceState::Running);
        assert_eq!(life(running(), || false), Life::GoesOn);
        assert_eq!(life(running(), || true), Life::GivenUp, "restarted since");
        let resetting = in_state(DeviceState::Resetting);
        assert_eq!(life(resetting, || false), Life::GivenUp);
        assert_eq!(life(in_state(DeviceState::Gone), || true), Life::Over);
        assert_eq!(life(Err(Errno::NODEV), || true), Life::Over);
    }
}
