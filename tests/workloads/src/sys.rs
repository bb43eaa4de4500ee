//! System calls that have no safe form elsewhere: forks, raw ioctls, and unusual mappings.
//!
//! It knows nothing of the device.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use hmm_tool::region::Region;
use rustix::io::Errno;
use rustix::ioctl::{ioctl, Ioctl, IoctlOutput, Opcode};
use rustix::mm::{mprotect, MprotectFlags};
use rustix::process::Pid;

/// A mapping whose pages never come: a thread that touches them waits for ever.
pub(crate) struct Withheld {
    region: Region,
    userfaultfd: OwnedFd,
}

impl Withheld {
    /// Maps `length` bytes. Programs that this one starts also keep the pages from coming.
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        /// The ioctls of `linux/userfaultfd.h`: one to agree on the interface, one to register a
        /// range whose missing pages are provided by this process.
        const API: (u32, u64) = (0xc018_aa3f, 0xaa);
        const REGISTER: (u32, u64) = (0xc020_aa00, 1);
        let region = Region::anonymous(length)?;
        // SAFETY: it takes no memory.
        let raw = unsafe { libc::syscall(libc::SYS_userfaultfd, 0) };
        let raw = i32::try_from(raw).ok().filter(|raw| *raw >= 0);
        let raw = raw.ok_or_else(io::Error::last_os_error)?;
        // SAFETY: the descriptor is new and has no other owner.
        let userfaultfd = unsafe { OwnedFd::from_raw_fd(raw) };
        let start = region.address() as u64;
        for (code, words) in [
            (API.0, [API.1, 0, 0, 0]),
            (REGISTER.0, [start, length as u64, REGISTER.1, 0]),
        ] {
            let mut words = words;
            let address = words.as_mut_ptr().expose_provenance();
            // SAFETY: the structures of these calls are of three and of four such words.
            unsafe { raw_ioctl(userfaultfd.as_fd(), code, address) }?;
        }
        Ok(Self {
            region,
            userfaultfd,
        })
    }

    /// Its bytes, which only a job may read.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.region.bytes()
    }

    /// Waits until a thread or a job waits for a page.
    pub(crate) fn wait_for_fault(&self) -> io::Result<()> {
        let mut message = [0_u8; 32];
        rustix::io::read(&self.userfaultfd, &mut message)?;
        Ok(())
    }
}

/// Four pages in a row with fewer and fewer rights: two may be written, one may only be read, one
/// may not be touched.
pub(crate) struct Staircase {
    region: Region,
    page: usize,
}

impl Staircase {
    /// Maps the pages.
    pub(crate) fn new(page: usize) -> io::Result<Self> {
        let mut region = Region::anonymous(4 * page)?;
        // The read-only page begins with a pointer to itself.
        let ring = region.address() + 2 * page;
        region.bytes_mut()[2 * page..][..8].copy_from_slice(&ring.to_ne_bytes());
        // From here on, the region's invariant holds because no slice is given out beyond the
        // readable part.
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
        self.region.address()
    }

    /// The address of a page that may be read. It begins with a pointer to itself.
    pub(crate) fn read_only(&self) -> usize {
        self.writable() + 2 * self.page
    }

    /// Whether that page still has its first contents.
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

/// What else a child shares with this process, as its memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Nothing: it is a process of its own, as a child of vfork(2).
    Memory,
    /// All: it is another thread of the process.
    Process,
}

/// Starts a child that shares this process's memory, reads a byte, and exits, with its whole process if
/// it is a thread. Returns its number. The stack must outlive it.
pub(crate) fn share(
    stack: &mut [u128],
    sharing: Sharing,
    input: BorrowedFd<'_>,
) -> io::Result<Pid> {
    extern "C" fn wait(input: *mut c_void) -> libc::c_int {
        let input = libc::c_int::try_from(input.addr()).unwrap_or(-1);
        let mut byte = 0_u8;
        // SAFETY: the byte is valid for writes.
        unsafe { libc::read(input, (&raw mut byte).cast(), 1) };
        // SAFETY: it takes a number. It ends all threads, without running anything.
        unsafe { libc::syscall(libc::SYS_exit_group, 0) };
        0
    }
    let input = usize::try_from(input.as_raw_fd()).unwrap_or(usize::MAX);
    let argument = std::ptr::without_provenance_mut(input);
    let top = stack.as_mut_ptr_range().end.cast::<c_void>();
    let flags = match sharing {
        Sharing::Memory => libc::CLONE_VM | libc::SIGCHLD,
        Sharing::Process => {
            libc::CLONE_VM
                | libc::CLONE_FS
                | libc::CLONE_FILES
                | libc::CLONE_SIGHAND
                | libc::CLONE_THREAD
        }
    };
    // SAFETY: the child runs `wait` only, which makes two system calls and uses nothing else, on a stack
    // that outlives it by this function's contract.
    let child = unsafe { libc::clone(wait, top, flags, argument) };
    Pid::from_raw(child)
        .filter(|_| child > 0)
        .ok_or_else(io::Error::last_os_error)
}

/// Closes a file for this process, which has been forked; others still have it.
pub(crate) fn close(file: BorrowedFd<'_>) {
    // SAFETY: the child does not use it any more, and never drops it.
    unsafe { libc::close(file.as_raw_fd()) };
}

/// Writes some bytes to a pipe that has room for them.
pub(crate) fn write(pipe: BorrowedFd<'_>, bytes: &[u8]) {
    // The reader finds out if they are missing.
    let _ = rustix::io::write(pipe, bytes);
}

/// Ends the calling thread, and not its process.
pub(crate) fn end_thread() -> ! {
    loop {
        // SAFETY: it takes a number.
        unsafe { libc::syscall(libc::SYS_exit, 0) };
    }
}

/// Makes this process, which root has forked, another user's. Returns whether that was done.
pub(crate) fn become_user(user: u32) -> bool {
    // SAFETY: this call takes numbers, and no memory.
    let has_group = unsafe { libc::setresgid(user, user, user) } == 0;
    // SAFETY: as above.
    has_group && unsafe { libc::setresuid(user, user, user) } == 0
}

/// An ioctl of any code with any address.
struct RawCall {
    code: u32,
    address: usize,
}

// SAFETY: this only passes on what it was made from; `raw_ioctl` asks its caller to answer for
// both.
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
