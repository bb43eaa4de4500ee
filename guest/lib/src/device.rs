//! An open node, and the calls that need no binding.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{open, Mode, OFlags};
use virtio_hmm_spec::uapi::{Counters, Info, MAX_DEVICES, MAX_RESIDENCY_PAGES};

use crate::error::{Error, Result, SystemError};
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
        sys::info(self.file.as_fd()).map_err(|errno| Error::system("asking the device", errno))
    }

    /// The counters of driver and device.
    ///
    /// # Errors
    ///
    /// `ENODEV` when it has been removed, `EIO` when it stopped answering.
    pub fn counters(&self) -> Result<Counters> {
        sys::counters(self.file.as_fd())
            .map_err(|errno| Error::system("reading the counters", errno))
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
                .map_err(|errno| Error::system("asking where pages are", errno))?;
            address += (states.len() * page_size()) as u64;
        }
        Ok(states.into_iter().map(PageState::from_raw).collect())
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}
