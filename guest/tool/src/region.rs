//! A mapping of this process: the system calls that have no safe form elsewhere.
//!
//! It knows nothing of the device.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::mm::{
    madvise, mmap, mmap_anonymous, mprotect, munmap, Advice, MapFlags, MprotectFlags, ProtFlags,
};

/// A mapping that only this value changes.
///
/// Invariant: `start` begins a mapping of `length` bytes that is this value's own,
/// readable, and writable if `writable` says so.
pub struct Region {
    start: NonNull<u8>,
    length: usize,
    writable: bool,
}

// SAFETY: the mapping belongs to the process, not to a thread, and is reached only
// through borrows of its owner.
unsafe impl Send for Region {}
// SAFETY: as above; through a shared borrow it is only read.
unsafe impl Sync for Region {}

impl Region {
    /// Private memory of zeros.
    pub fn anonymous(length: usize) -> io::Result<Self> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, so nothing that exists is touched.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), length, rights, MapFlags::PRIVATE) }?;
        Self::own(start, length, true)
    }

    /// Asks the kernel for huge pages.
    pub fn prefer_large(&self) -> io::Result<()> {
        // SAFETY: the region exists as long as `self`, and its contents do not change.
        unsafe {
            madvise(
                self.start.as_ptr().cast(),
                self.length,
                Advice::LinuxHugepage,
            )
        }?;
        Ok(())
    }

    /// A file's contents.
    ///
    /// The file must not become shorter meanwhile: that ends the process with `SIGBUS`.
    pub fn file(file: &File) -> io::Result<Self> {
        let length = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
        // SAFETY: the kernel chooses the address, so nothing that exists is touched.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                length,
                ProtFlags::READ,
                MapFlags::PRIVATE,
                file,
                0,
            )
        }?;
        Self::own(start, length, false)
    }

    fn own(start: *mut c_void, length: usize, writable: bool) -> io::Result<Self> {
        let start = NonNull::new(start.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self {
            start,
            length,
            writable,
        })
    }

    /// Makes it read-only.
    pub fn protect(&mut self) -> io::Result<()> {
        // Set first: it must not be given out for writing even if only a part of it has been
        // protected.
        self.writable = false;
        let start = self.start.as_ptr().cast();
        // SAFETY: the mapping is this value's own, and nothing borrows it.
        Ok(unsafe { mprotect(start, self.length, MprotectFlags::READ) }?)
    }

    /// The address of its first byte.
    #[must_use]
    pub fn address(&self) -> usize {
        self.start.as_ptr().expose_provenance()
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: by the invariant there are `length` readable bytes, which live as long
        // as `self` and are changed only through a mutable borrow of it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// All of it, if it may be written.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let length = if self.writable { self.length } else { 0 };
        // SAFETY: by the invariant there are `length` writable bytes, which live as long
        // as `self`, and this is the only borrow of it.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), length) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own and nothing borrows it any more.
        // It cannot fail: the range is a mapping, or part of one.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.length) };
    }
}
