//! System calls that have no safe form elsewhere.
//!
//! The only file of this program that calls C. It knows nothing of the device.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn check_long(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn check_word(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn pointer(address: usize) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(address)
}

/// What a mapping may be used for.
pub(crate) const NO_ACCESS: c_int = libc::PROT_NONE;
/// Reading.
pub(crate) const READ: c_int = libc::PROT_READ;
/// Reading and writing.
pub(crate) const READ_WRITE: c_int = libc::PROT_READ | libc::PROT_WRITE;

/// Makes a mapping: its address.
///
/// # Safety
///
/// With `MAP_FIXED`, nothing that Rust knows of may lie in the range.
pub(crate) unsafe fn map(
    address: usize,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    file: Option<(BorrowedFd<'_>, i64)>,
) -> io::Result<usize> {
    let (file, offset): (RawFd, i64) = match file {
        Some((file, offset)) => (file.as_raw_fd(), offset),
        None => (-1, 0),
    };
    // SAFETY: without `MAP_FIXED` the kernel chooses a free range; with it the caller
    // answers for what was there.
    let start = unsafe { libc::mmap(pointer(address), bytes, protection, flags, file, offset) };
    if start == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(start.expose_provenance())
    }
}

/// Takes a mapping away.
///
/// # Safety
///
/// Nothing that Rust knows of may lie in the range.
pub(crate) unsafe fn unmap(address: usize, bytes: usize) -> io::Result<()> {
    // SAFETY: as the caller promises.
    check(unsafe { libc::munmap(pointer(address), bytes) }).map(drop)
}

/// Moves a mapping: its new address.
///
/// # Safety
///
/// Nothing that Rust knows of may lie in either range.
pub(crate) unsafe fn remap(
    from: usize,
    bytes: usize,
    to: usize,
    flags: c_int,
) -> io::Result<usize> {
    let flags = flags | libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: as the caller promises.
    let start = unsafe { libc::mremap(pointer(from), bytes, bytes, flags, pointer(to)) };
    if start == libc::MAP_FAILED {
        Err(io::Error::last_os_error())
    } else {
        Ok(start.expose_provenance())
    }
}

/// Changes what a range may be used for.
///
/// # Safety
///
/// Nothing that Rust knows of may lie in the range.
pub(crate) unsafe fn protect(address: usize, bytes: usize, protection: c_int) -> io::Result<()> {
    // SAFETY: as the caller promises.
    check(unsafe { libc::mprotect(pointer(address), bytes, protection) }).map(drop)
}

/// Gives advice on a range, some of which empties it.
///
/// # Safety
///
/// Nothing that Rust knows of may lie in the range.
pub(crate) unsafe fn advise(address: usize, bytes: usize, advice: c_int) -> io::Result<()> {
    // SAFETY: as the caller promises.
    check(unsafe { libc::madvise(pointer(address), bytes, advice) }).map(drop)
}

/// Keeps a range in memory.
pub(crate) fn lock(address: usize, bytes: usize) -> io::Result<()> {
    // SAFETY: locking changes no byte; a range that is not mapped is refused.
    check(unsafe { libc::mlock(pointer(address), bytes) }).map(drop)
}

/// Writes a shared file mapping back.
pub(crate) fn synchronise(address: usize, bytes: usize) -> io::Result<()> {
    // SAFETY: it changes no byte of memory; a range that is not mapped is refused.
    check(unsafe { libc::msync(pointer(address), bytes, libc::MS_SYNC) }).map(drop)
}

/// Splits this process in two; in the child, the result is `None`.
///
/// # Safety
///
/// The child has only the calling thread: locks that others hold stay held. It must
/// call nothing that needs them and end with [`leave`].
pub(crate) unsafe fn fork() -> io::Result<Option<i32>> {
    // SAFETY: as the caller promises.
    let id = check(unsafe { libc::fork() })?;
    Ok((id != 0).then_some(id))
}

/// Ends this process at once.
pub(crate) fn leave(status: c_int) -> ! {
    // SAFETY: it does not return and runs nothing of ours.
    unsafe { libc::_exit(status) }
}

/// How a child ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With this exit status.
    Exited(c_int),
    /// By this signal.
    Signalled(c_int),
    /// It has not: this signal stopped it.
    Stopped(c_int),
}

/// Waits until a child ends or, if traced, stops.
pub(crate) fn wait(id: i32) -> io::Result<End> {
    let mut status = 0;
    loop {
        // SAFETY: `status` is written and lives long enough.
        match check(unsafe { libc::waitpid(id, &mut status, 0) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
            Ok(_) if libc::WIFEXITED(status) => {
                return Ok(End::Exited(libc::WEXITSTATUS(status)));
            }
            Ok(_) if libc::WIFSTOPPED(status) => {
                return Ok(End::Stopped(libc::WSTOPSIG(status)));
            }
            Ok(_) => return Ok(End::Signalled(libc::WTERMSIG(status))),
        }
    }
}

/// Sends a signal.
pub(crate) fn signal(id: i32, number: c_int) -> io::Result<()> {
    // SAFETY: it takes no memory.
    check(unsafe { libc::kill(id, number) }).map(drop)
}

/// From now on this signal ends the process at once. The handlers that Rust installs for
/// some of them return if they do not know the address, and the access is tried again.
pub(crate) fn die_of(number: c_int) {
    // SAFETY: no handler is set, so that nothing of ours runs when the signal comes.
    unsafe { libc::signal(number, libc::SIG_DFL) };
}

/// A pipe: the end to read and the end to write.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: there is room for both descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let read = unsafe { OwnedFd::from_raw_fd(ends[0]) };
    // SAFETY: as above.
    let write = unsafe { OwnedFd::from_raw_fd(ends[1]) };
    Ok((read, write))
}

/// Has the kernel read memory of this process and write it to a file: how many bytes.
/// Where the CPU could not read, the answer is `EFAULT` instead of a signal.
pub(crate) fn write_from(file: BorrowedFd<'_>, address: usize, bytes: usize) -> io::Result<usize> {
    // SAFETY: the kernel checks the range.
    check_long(unsafe { libc::write(file.as_raw_fd(), pointer(address), bytes) })
}

/// Has the kernel read from a file and write to memory of this process: how many bytes.
///
/// # Safety
///
/// Nothing that Rust knows of may lie in the range.
pub(crate) unsafe fn read_into(
    file: BorrowedFd<'_>,
    address: usize,
    bytes: usize,
) -> io::Result<usize> {
    // SAFETY: the kernel checks the range; the caller answers for what is there.
    check_long(unsafe { libc::read(file.as_raw_fd(), pointer(address), bytes) })
}

/// Puts the pages of a range into a pipe without copying: how many bytes. As long as
/// they are in there, they are pinned.
pub(crate) fn splice_pages(
    pipe: BorrowedFd<'_>,
    address: usize,
    bytes: usize,
) -> io::Result<usize> {
    let range = libc::iovec {
        iov_base: pointer(address),
        iov_len: bytes,
    };
    // SAFETY: `range` is only read; the kernel checks what it describes.
    check_long(unsafe { libc::vmsplice(pipe.as_raw_fd(), &range, 1, 0) })
}

fn single(address: usize, bytes: usize) -> libc::iovec {
    libc::iovec {
        iov_base: pointer(address),
        iov_len: bytes,
    }
}

/// Reads memory of a process, maybe of this one.
pub(crate) fn read_process(id: i32, address: usize, into: &mut [u8]) -> io::Result<usize> {
    let local = single(into.as_mut_ptr().expose_provenance(), into.len());
    let remote = single(address, into.len());
    // SAFETY: `local` describes `into`, which is borrowed mutably.
    check_long(unsafe { libc::process_vm_readv(id, &local, 1, &remote, 1, 0) })
}

/// Writes memory of another process.
pub(crate) fn write_process(id: i32, address: usize, from: &[u8]) -> io::Result<usize> {
    let local = single(from.as_ptr().expose_provenance(), from.len());
    let remote = single(address, from.len());
    // SAFETY: `local` describes `from`, which is only read; the other process is not us.
    check_long(unsafe { libc::process_vm_writev(id, &local, 1, &remote, 1, 0) })
}

/// Begins to trace a process, which stops.
pub(crate) fn attach(id: i32) -> io::Result<()> {
    // SAFETY: the request takes no memory.
    let result = unsafe { libc::ptrace(libc::PTRACE_ATTACH, id, 0, 0) };
    check_word(result).map(drop)
}

/// Reads a word of a traced process.
pub(crate) fn peek(id: i32, address: usize) -> io::Result<u64> {
    let mut word = 0_u64;
    let into = std::ptr::from_mut(&mut word);
    // The bare system call stores the word; only the C library's wrapper returns it.
    // SAFETY: `word` is eight bytes, which the kernel writes.
    check_word(unsafe {
        libc::syscall(libc::SYS_ptrace, libc::PTRACE_PEEKDATA, id, address, into)
    })?;
    Ok(word)
}

/// Writes a word of a traced process.
pub(crate) fn poke(id: i32, address: usize, word: u64) -> io::Result<()> {
    // SAFETY: the kernel checks the address, which is in the other process.
    check_word(unsafe { libc::syscall(libc::SYS_ptrace, libc::PTRACE_POKEDATA, id, address, word) })
        .map(drop)
}

/// Ends the tracing; the process goes on.
pub(crate) fn detach(id: i32) -> io::Result<()> {
    // SAFETY: the request takes no memory.
    let result = unsafe { libc::ptrace(libc::PTRACE_DETACH, id, 0, 0) };
    check_word(result).map(drop)
}

/// Has a child that shares this process's memory, as `vfork` makes it, end with a
/// status: how it ended.
pub(crate) fn vfork_and_exit(status: c_int) -> io::Result<End> {
    extern "C" fn exit(status: *mut c_void) -> c_int {
        leave(c_int::try_from(status.addr()).unwrap_or(-1))
    }
    // A stack of its own: the child must not disturb ours.
    let mut stack = vec![0_u128; 4096];
    let top = stack.as_mut_ptr_range().end.cast::<c_void>();
    let argument = std::ptr::without_provenance_mut(usize::try_from(status).unwrap_or(0));
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the child runs `exit` only, which makes one system call, on a stack that
    // lives until it has ended: CLONE_VFORK stops this thread until then.
    let id = check(unsafe { libc::clone(exit, top, flags, argument) })?;
    wait(id)
}

/// Asks a driver for something: what the call returns.
///
/// # Safety
///
/// `argument` is what the call with this code takes, and points to what it may write.
pub(crate) unsafe fn control<T>(
    file: BorrowedFd<'_>,
    code: u32,
    argument: *mut T,
) -> io::Result<c_int> {
    // SAFETY: as the caller promises.
    check(unsafe { libc::ioctl(file.as_raw_fd(), code.into(), argument) })
}

/// A userfaultfd: decides what is found in a range, page by page.
#[derive(Debug)]
pub(crate) struct Userfault {
    file: OwnedFd,
}

/// The ioctls and structures of `linux/userfaultfd.h`.
mod uffd {
    pub(super) const API: u64 = 0xaa;
    pub(super) const UFFDIO_API: u64 = 0xc018_aa3f;
    pub(super) const UFFDIO_REGISTER: u64 = 0xc020_aa00;
    pub(super) const UFFDIO_COPY: u64 = 0xc028_aa03;
    pub(super) const UFFDIO_WRITEPROTECT: u64 = 0xc018_aa06;
    pub(super) const MODE_MISSING: u64 = 1;
    pub(super) const MODE_WP: u64 = 2;
    pub(super) const PROTECT: u64 = 1;
    pub(super) const FEATURE_WP: u64 = 1;
    pub(super) const EVENT_PAGEFAULT: u8 = 0x12;
    /// Bytes of a message, and where the address is in one about a page fault.
    pub(super) const MESSAGE: usize = 32;
    pub(super) const ADDRESS: std::ops::Range<usize> = 16..24;
}

impl Userfault {
    /// Opens one.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: it takes no memory.
        let file = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        let file = c_int::try_from(check_word(file)?).map_err(io::Error::other)?;
        // SAFETY: the descriptor is new and nobody else's.
        let file = unsafe { OwnedFd::from_raw_fd(file) };
        let this = Self { file };
        this.call(uffd::UFFDIO_API, &mut [uffd::API, uffd::FEATURE_WP, 0])?;
        Ok(this)
    }

    fn call<const WORDS: usize>(&self, code: u64, words: &mut [u64; WORDS]) -> io::Result<()> {
        // SAFETY: each of the codes above carries the size of its structure, which is that
        // of the array that its only caller passes.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), code, words.as_mut_ptr()) }).map(drop)
    }

    /// From now on, who touches a missing page of the range waits for [`Self::copy`].
    pub(crate) fn register_missing(&self, address: usize, bytes: usize) -> io::Result<()> {
        self.register(address, bytes, uffd::MODE_MISSING)
    }

    /// From now on, pages of the range can be protected by [`Self::protect`].
    pub(crate) fn register_write_protection(&self, address: usize, bytes: usize) -> io::Result<()> {
        self.register(address, bytes, uffd::MODE_WP)
    }

    fn register(&self, address: usize, bytes: usize, mode: u64) -> io::Result<()> {
        let words = &mut [address as u64, bytes as u64, mode, 0];
        self.call(uffd::UFFDIO_REGISTER, words)
    }

    /// Waits for the next fault: its address.
    pub(crate) fn next_fault(&self) -> io::Result<usize> {
        let mut message = [0_u8; uffd::MESSAGE];
        let count = rustix::io::read(&self.file, &mut message)?;
        if count != message.len() || message[0] != uffd::EVENT_PAGEFAULT {
            return Err(io::Error::other("another message than a page fault"));
        }
        let mut address = [0; 8];
        address.copy_from_slice(&message[uffd::ADDRESS]);
        usize::try_from(u64::from_ne_bytes(address)).map_err(io::Error::other)
    }

    /// Puts a copy of other memory where pages are missing.
    pub(crate) fn copy(&self, to: usize, from: usize, bytes: usize) -> io::Result<()> {
        let words = &mut [to as u64, from as u64, bytes as u64, 0, 0];
        self.call(uffd::UFFDIO_COPY, words)
    }

    /// Protects pages against writing, or ends that and wakes who waits.
    pub(crate) fn protect(&self, address: usize, bytes: usize, on: bool) -> io::Result<()> {
        let mode = if on { uffd::PROTECT } else { 0 };
        self.call(
            uffd::UFFDIO_WRITEPROTECT,
            &mut [address as u64, bytes as u64, mode],
        )
    }
}

/// Sleeps on the first word of an area, if it still holds `value`, until it is woken or
/// `limit` has passed.
pub(crate) fn futex_wait(area: &crate::area::Area, value: u64, limit: std::time::Duration) {
    let limit = libc::timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    // The word's low half; the machine is little-endian. Why it returns does not matter:
    // the caller looks at the word.
    // SAFETY: the kernel checks the address and only reads there; `limit` is only read.
    let _ = unsafe {
        libc::syscall(
            libc::SYS_futex,
            area.address(0),
            libc::FUTEX_WAIT,
            value & u64::from(u32::MAX),
            &limit,
        )
    };
}

/// Wakes who sleeps on the first word of an area: how many did.
pub(crate) fn futex_wake(area: &crate::area::Area) -> io::Result<libc::c_long> {
    // SAFETY: the kernel checks the address, and uses it as a name only.
    check_word(unsafe { libc::syscall(libc::SYS_futex, area.address(0), libc::FUTEX_WAKE, 9) })
}
