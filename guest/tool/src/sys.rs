//! System calls that have no safe form elsewhere: mappings, forks and raw ioctls.
//!
//! The only unsafe file of the tool besides the two workloads that must break rules,
//! `churn` and `bad_input`. It knows nothing of the device.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::ioctl::{ioctl, Ioctl, IoctlOutput, Opcode};
use rustix::mm::{mmap, mmap_anonymous, munmap, MapFlags, ProtFlags};
use rustix::process::Pid;

/// A mapping that nobody else changes.
///
/// Invariant: `start` begins a mapping of `length` bytes that is this value's own,
/// readable, and writable if `writable` says so.
pub(crate) struct Region {
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
    pub(crate) fn anonymous(length: usize) -> io::Result<Self> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses the address, so nothing that exists is touched.
        let start =
            unsafe { mmap_anonymous(std::ptr::null_mut(), length, rights, MapFlags::PRIVATE) }?;
        Self::own(start, length, true)
    }

    /// A file's contents.
    ///
    /// It must not be made shorter meanwhile: that ends the process with `SIGBUS`.
    pub(crate) fn file(file: &File) -> io::Result<Self> {
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

    /// All of it.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: by the invariant there are `length` readable bytes, which live as long
        // as `self` and are changed only through a mutable borrow of it.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }

    /// All of it, if it may be written.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
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

/// Forks a child that runs `body` and exits with what it returns.
///
/// # Safety
///
/// Other threads do not exist in the child, but the locks that they held do: `body`
/// must do only what is async-signal-safe, and not allocate.
pub(crate) unsafe fn fork(body: impl FnOnce() -> u8) -> io::Result<Pid> {
    // SAFETY: the child does nothing but run `body`, which the caller answers for.
    match unsafe { libc::fork() } {
        0 => {
            let status = body();
            // SAFETY: ends the child without running anything of its parent's.
            unsafe { libc::_exit(status.into()) }
        }
        child => Pid::from_raw(child)
            .filter(|_| child > 0)
            .ok_or_else(io::Error::last_os_error),
    }
}

/// An ioctl of any code with any address.
struct RawCall {
    code: u32,
    address: usize,
}

// SAFETY: this only hands on what it was made from; `raw_ioctl` asks its caller to
// answer for both.
unsafe impl Ioctl for RawCall {
    type Output = ();

    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        Opcode::from(self.code)
    }

    fn as_ptr(&mut self) -> *mut c_void {
        std::ptr::with_exposed_provenance_mut(self.address)
    }

    unsafe fn output_from_ptr(_: IoctlOutput, _: *mut c_void) -> rustix::io::Result<()> {
        Ok(())
    }
}

/// Makes an ioctl of any code with any address.
///
/// # Safety
///
/// The call, if it is carried out, must do no harm to this process's memory.
pub(crate) unsafe fn raw_ioctl(
    file: BorrowedFd<'_>,
    code: u32,
    address: usize,
) -> Result<(), Errno> {
    // SAFETY: the caller answers for what the call does.
    unsafe { ioctl(file, RawCall { code, address }) }
}
