//! A flag that one thread raises and another polls.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{eventfd, EventfdFlags};
use rustix::io::Errno;

/// A flag. A `poll` sees it as readable while it is raised.
pub(crate) struct Wake(OwnedFd);

impl Wake {
    /// A flag that is not raised.
    ///
    /// # Errors
    ///
    /// When the kernel has no more descriptors.
    pub(crate) fn new() -> io::Result<Self> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        Ok(Self(eventfd(0, flags)?))
    }

    /// Raises it.
    ///
    /// # Errors
    ///
    /// None that the kernel documents for so small a count.
    pub(crate) fn raise(&self) -> io::Result<()> {
        rustix::io::write(&self.0, &1_u64.to_ne_bytes())?;
        Ok(())
    }

    /// Lowers it.
    ///
    /// # Errors
    ///
    /// None that the kernel documents.
    pub(crate) fn lower(&self) -> io::Result<()> {
        match rustix::io::read(&self.0, &mut [0; size_of::<u64>()]) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
