//! System calls that have no safe form elsewhere: mappings, forks and raw ioctls.
//!
//! It knows nothing of the device.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::io::Errno;
use rustix::ioctl::{ioctl, Ioctl, IoctlOutput, Opcode};
use rustix::mm::{mmap, mmap_anonymous, mprotect, munmap, MapFlags, MprotectFlags, ProtFlags};
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

    /// Takes the right to write to it away.
    pub(crate) fn protect(&mut self) -> io::Result<()> {
        // It may not be given out to be written even if only a part of it still could be.
        self.writable = false;
        let start = self.start.as_ptr().cast();
        // SAFETY: the mapping is this value's own, and nothing borrows it.
        Ok(unsafe { mprotect(start, self.length, MprotectFlags::READ) }?)
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

/// Four pages in a row, each step with fewer rights: two that may be written, one that
/// may only be read, one that may not be touched.
pub(crate) struct Staircase {
    region: Region,
    page: usize,
}

impl Staircase {
    /// Maps the pages.
    pub(crate) fn new(page: usize) -> io::Result<Self> {
        let mut region = Region::anonymous(4 * page)?;
        // The page that may only be read begins with a pointer to itself.
        let ring = region.start.as_ptr().expose_provenance() + 2 * page;
        region.bytes_mut()[2 * page..][..8].copy_from_slice(&ring.to_ne_bytes());
        // From here on the invariant of a region is kept by giving out no slice of it
        // beyond what may be read.
        let stairs = Self { region, page };
        stairs.restrict(stairs.read_only(), MprotectFlags::READ)?;
        stairs.restrict(stairs.inaccessible(), MprotectFlags::empty())?;
        Ok(stairs)
    }

    fn restrict(&self, page: usize, rights: MprotectFlags) -> io::Result<()> {
        let start = std::ptr::with_exposed_provenance_mut(page);
        // SAFETY: the page is the region's own and nothing borrows it.
        Ok(unsafe { mprotect(start, self.page, rights) }?)
    }

    /// The address of two pages that may be written.
    pub(crate) fn writable(&self) -> usize {
        self.region.start.as_ptr().expose_provenance()
    }

    /// The address of a page that may be read. It begins with a pointer to itself.
    pub(crate) fn read_only(&self) -> usize {
        self.writable() + 2 * self.page
    }

    /// Whether that page still holds what it did at first.
    pub(crate) fn is_untouched(&self) -> bool {
        let start = std::ptr::with_exposed_provenance::<u8>(self.read_only());
        // SAFETY: the page may be read for as long as `self` lives, and not written.
        let bytes = unsafe { std::slice::from_raw_parts(start, self.page) };
        let (ring, rest) = bytes.split_at(size_of::<usize>());
        ring == self.read_only().to_ne_bytes() && rest.iter().all(|&byte| byte == 0)
    }

    /// The address of a page that may not be touched.
    pub(crate) fn inaccessible(&self) -> usize {
        self.writable() + 3 * self.page
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
