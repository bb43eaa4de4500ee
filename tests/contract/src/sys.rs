//! System calls that have no safe form elsewhere.
//!
//! The only file of this program that calls C. It knows nothing of the device.

use std::ffi::{c_int, c_short, c_void};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};

use hmm::spec::uapi::{Call, Migrate};

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

/// Makes a mapping and returns its address.
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

/// Removes a mapping.
///
/// # Safety
///
/// Nothing that Rust knows of may lie in the range.
pub(crate) unsafe fn unmap(address: usize, bytes: usize) -> io::Result<()> {
    // SAFETY: as the caller promises.
    check(unsafe { libc::munmap(pointer(address), bytes) }).map(drop)
}

/// Moves a mapping and returns its new address.
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

/// Changes the protection of a range.
///
/// # Safety
///
/// Nothing that Rust knows of may lie in the range.
pub(crate) unsafe fn protect(address: usize, bytes: usize, protection: c_int) -> io::Result<()> {
    // SAFETY: as the caller promises.
    check(unsafe { libc::mprotect(pointer(address), bytes, protection) }).map(drop)
}

/// Gives advice on a range; some kinds of advice empty it.
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

/// Makes this process belong to a user, and to the group of the same number, for good.
pub(crate) fn become_user(user: u32) -> io::Result<()> {
    // SAFETY: it takes no memory.
    check(unsafe { libc::setgroups(0, std::ptr::null()) })?;
    // SAFETY: as above.
    check(unsafe { libc::setgid(user) })?;
    // SAFETY: as above.
    check(unsafe { libc::setuid(user) }).map(drop)
}

/// Forbids other processes of the same user to look into this one, or allows it.
pub(crate) fn hide(hides: bool) -> io::Result<()> {
    let dumpable = libc::c_ulong::from(!hides);
    // SAFETY: it takes no memory.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, dumpable, 0, 0, 0) }).map(drop)
}

/// A file of memory that only the processes that map it can read, and not through the kernel.
pub(crate) fn memfd_secret() -> io::Result<OwnedFd> {
    // SAFETY: it takes no memory.
    let file = unsafe { libc::syscall(libc::SYS_memfd_secret, libc::O_CLOEXEC) };
    let file = c_int::try_from(file).ok().filter(|file| *file >= 0);
    let file = file.ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the descriptor is new and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}

/// Lets this process keep its capabilities, though without effect, when it becomes another user's; or
/// not.
pub(crate) fn keep_capabilities(keeps: bool) -> io::Result<()> {
    let keeps = libc::c_ulong::from(keeps);
    // SAFETY: it takes no memory.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, keeps, 0, 0, 0) }).map(drop)
}

/// Makes the next child of this process the first of a new process namespace.
pub(crate) fn own_process_numbers() -> io::Result<()> {
    // SAFETY: it takes no memory and concerns children only.
    check(unsafe { libc::unshare(libc::CLONE_NEWPID) }).map(drop)
}

/// Sends a signal.
pub(crate) fn signal(id: i32, number: c_int) -> io::Result<()> {
    // SAFETY: it takes no memory.
    check(unsafe { libc::kill(id, number) }).map(drop)
}

/// The ioctl [`Migrate`], once: a signal ends it with what has been done.
pub(crate) fn migrate(file: BorrowedFd<'_>, argument: &mut Migrate) -> io::Result<()> {
    let argument = std::ptr::from_mut(argument);
    // SAFETY: the call reads and writes this structure, which lives long enough. To move pages
    // changes no byte of the process.
    check(unsafe { libc::ioctl(file.as_raw_fd(), u64::from(Migrate::CODE), argument) })?;
    Ok(())
}

/// Makes this signal end the process at once. Rust's own handlers for some signals return if they
/// do not know the address, and the access is tried again.
pub(crate) fn die_of(number: c_int) {
    // SAFETY: no handler is set, so that nothing of ours runs when the signal comes.
    unsafe { libc::signal(number, libc::SIG_DFL) };
}

/// A pipe: the end to read and the end to write.
pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: there is room for both descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: the descriptor is new and has no other owner.
    let read = unsafe { OwnedFd::from_raw_fd(ends[0]) };
    // SAFETY: as above.
    let write = unsafe { OwnedFd::from_raw_fd(ends[1]) };
    Ok((read, write))
}

/// Has the kernel read memory of this process and write it to a file. Returns how many bytes. If
/// the CPU could not read the memory, the answer is `EFAULT` instead of a signal.
pub(crate) fn write_from(file: BorrowedFd<'_>, address: usize, bytes: usize) -> io::Result<usize> {
    // SAFETY: the kernel checks the range.
    check_long(unsafe { libc::write(file.as_raw_fd(), pointer(address), bytes) })
}

/// Has the kernel read from a file and write to memory of this process. Returns how many bytes.
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

/// Puts the pages of a range into a pipe without copying. Returns how many bytes. The pages are
/// pinned as long as they are in the pipe.
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

/// Makes a child that shares this process's memory, as `vfork` does, and has it exit with a status.
/// Returns how it ended.
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

/// Makes an ioctl and returns its result.
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

/// A userfaultfd: this process serves the faults of a range, page by page.
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
    pub(super) const UFFDIO_MOVE: u64 = 0xc028_aa05;
    pub(super) const UFFDIO_WRITEPROTECT: u64 = 0xc018_aa06;
    pub(super) const MODE_MISSING: u64 = 1;
    pub(super) const MODE_WP: u64 = 2;
    pub(super) const PROTECT: u64 = 1;
    pub(super) const FEATURE_WP: u64 = 1;
    pub(super) const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
    pub(super) const FEATURE_WP_ASYNC: u64 = 1 << 15;
    pub(super) const EVENT_PAGEFAULT: u8 = 0x12;
    /// The size of a message, and the offset of the address in one about a page fault.
    pub(super) const MESSAGE: usize = 32;
    pub(super) const ADDRESS: std::ops::Range<usize> = 16..24;
}

impl Userfault {
    /// Opens one.
    pub(crate) fn new() -> io::Result<Self> {
        Self::with(uffd::FEATURE_WP)
    }

    /// Opens one that resolves writes to protected pages by itself, and remembers them.
    pub(crate) fn asynchronous() -> io::Result<Self> {
        Self::with(uffd::FEATURE_WP_ASYNC | uffd::FEATURE_WP_UNPOPULATED)
    }

    fn with(features: u64) -> io::Result<Self> {
        // SAFETY: it takes no memory.
        let file = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        let file = c_int::try_from(check_word(file)?).map_err(io::Error::other)?;
        // SAFETY: the descriptor is new and has no other owner.
        let file = unsafe { OwnedFd::from_raw_fd(file) };
        let this = Self { file };
        this.call(uffd::UFFDIO_API, &mut [uffd::API, features, 0])?;
        Ok(this)
    }

    fn call<const WORDS: usize>(&self, code: u64, words: &mut [u64; WORDS]) -> io::Result<()> {
        // SAFETY: each of the codes above carries the size of its structure, which is that
        // of the array that its only caller passes.
        check(unsafe { libc::ioctl(self.file.as_raw_fd(), code, words.as_mut_ptr()) }).map(drop)
    }

    /// From now on, a thread that touches a missing page of the range waits for [`Self::copy`].
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

    /// Waits for the next fault and returns its address.
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

    /// Moves pages of this process to where pages are missing.
    pub(crate) fn take(&self, to: usize, from: usize, bytes: usize) -> io::Result<()> {
        let words = &mut [to as u64, from as u64, bytes as u64, 0, 0];
        self.call(uffd::UFFDIO_MOVE, words)
    }

    /// Protects pages against writing, or ends that and wakes the threads that wait.
    pub(crate) fn protect(&self, address: usize, bytes: usize, on: bool) -> io::Result<()> {
        let mode = if on { uffd::PROTECT } else { 0 };
        self.call(
            uffd::UFFDIO_WRITEPROTECT,
            &mut [address as u64, bytes as u64, mode],
        )
    }
}

/// The ioctl of `linux/fs.h` that finds pages in a page map.
mod scan {
    pub(super) const PAGEMAP_SCAN: u64 = 0xc060_6610;
    pub(super) const WP_MATCHING: u64 = 1;
    pub(super) const CHECK_WPASYNC: u64 = 2;
    pub(super) const PAGE_IS_WRITTEN: u64 = 2;
    /// Words of the argument, and of a range that is found.
    pub(super) const ARGUMENT: usize = 12;
    pub(super) const REGION: usize = 3;
    /// The most ranges that are found.
    pub(super) const REGIONS: usize = 256;
}

/// The pages of a range that were written since they were protected. An asynchronous [`Userfault`]
/// must track the range. If `protect` is set, these pages are protected anew.
pub(crate) fn written_pages(address: usize, bytes: usize, protect: bool) -> io::Result<Vec<usize>> {
    let map = std::fs::File::open("/proc/self/pagemap")?;
    let mut found = [[0_u64; scan::REGION]; scan::REGIONS];
    let mut argument: [u64; scan::ARGUMENT] = [
        (scan::ARGUMENT * 8) as u64,
        if protect {
            scan::WP_MATCHING | scan::CHECK_WPASYNC
        } else {
            0
        },
        address as u64,
        (address + bytes) as u64,
        0,
        found.as_mut_ptr().expose_provenance() as u64,
        scan::REGIONS as u64,
        0,
        0,
        scan::PAGE_IS_WRITTEN,
        0,
        scan::PAGE_IS_WRITTEN,
    ];
    // SAFETY: the code carries the size of the argument, which names room for as many ranges as it
    // says.
    let count =
        check(unsafe { libc::ioctl(map.as_raw_fd(), scan::PAGEMAP_SCAN, argument.as_mut_ptr()) })?;
    let count = usize::try_from(count).map_err(io::Error::other)?;
    let place = |end: u64| {
        let end = usize::try_from(end).map_err(io::Error::other)?;
        Ok::<_, io::Error>((end - address) / crate::area::PAGE)
    };
    let mut pages = Vec::new();
    for [start, end, _] in found.into_iter().take(count) {
        pages.extend(place(start)?..place(end)?);
    }
    Ok(pages)
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

/// Wakes the threads that sleep on the first word of an area. Returns how many.
pub(crate) fn futex_wake(area: &crate::area::Area) -> io::Result<libc::c_long> {
    // SAFETY: the kernel checks the address, and uses it as a name only.
    check_word(unsafe { libc::syscall(libc::SYS_futex, area.address(0), libc::FUTEX_WAKE, 9) })
}

/// Makes the calling process, which has one thread, belong to a user and to the group of the same
/// number.
pub(crate) fn set_user(user: u32) -> io::Result<()> {
    // SAFETY: the calls take numbers only.
    check(unsafe { libc::setgid(user) })?;
    // SAFETY: as above.
    check(unsafe { libc::setuid(user) })?;
    // Otherwise only root may read its own `/proc/self/pagemap`. SAFETY: as above.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) })?;
    Ok(())
}

/// The value of `CLOCK_MONOTONIC` in nanoseconds.
pub(crate) fn monotonic() -> io::Result<i64> {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is written and lives long enough.
    check(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) })?;
    Ok(now.tv_sec * 1_000_000_000 + now.tv_nsec)
}

/// Signals that have been handled.
static SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn count_signal(_number: c_int) {
    SIGNALS.fetch_add(1, Ordering::Relaxed);
}

/// Installs a handler that only counts.
fn handle(number: c_int, restart: bool) -> io::Result<()> {
    // SAFETY: all bytes zero are a valid structure: no flags, no masked signals.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = count_signal as extern "C" fn(c_int) as libc::sighandler_t;
    action.sa_flags = if restart { libc::SA_RESTART } else { 0 };
    // SAFETY: the handler only changes an atomic number.
    check(unsafe { libc::sigaction(number, &action, std::ptr::null_mut()) }).map(drop)
}

/// A signal that is sent again and again as long as this exists, and is counted.
#[derive(Debug)]
pub(crate) struct Signals(());

impl Signals {
    /// Sends one after each period. The handler restarts calls if `restart` is set.
    pub(crate) fn every(period: std::time::Duration, restart: bool) -> io::Result<Self> {
        handle(libc::SIGALRM, restart)?;
        Self::set_timer(period)?;
        Ok(Self(()))
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        SIGNALS.load(Ordering::Relaxed)
    }

    fn set_timer(period: std::time::Duration) -> io::Result<()> {
        let period = libc::timeval {
            tv_sec: period.as_secs().try_into().unwrap_or(0),
            tv_usec: period.subsec_micros().into(),
        };
        let timer = libc::itimerval {
            it_interval: period,
            it_value: period,
        };
        // SAFETY: `timer` is only read.
        check(unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) }).map(drop)
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // A signal may be on its way, so the handler stays.
        let _ = Self::set_timer(std::time::Duration::ZERO);
    }
}

/// The poll event of a descriptor that is not open.
pub(crate) const NOT_OPEN: c_short = libc::POLLNVAL;

/// A thread that polls a descriptor by its number, without a limit of time.
pub(crate) struct Poller<'scope> {
    thread: std::thread::ScopedJoinHandle<'scope, io::Result<c_short>>,
    id: std::sync::mpsc::Receiver<i32>,
    known: std::cell::Cell<i32>,
}

impl<'scope> Poller<'scope> {
    /// Starts it.
    pub(crate) fn start(scope: &'scope std::thread::Scope<'scope, '_>, descriptor: RawFd) -> Self {
        let (tell, id) = std::sync::mpsc::channel();
        let thread = scope.spawn(move || {
            // SAFETY: it takes no memory.
            let thread = unsafe { libc::gettid() };
            tell.send(thread).map_err(io::Error::other)?;
            let mut file = libc::pollfd {
                fd: descriptor,
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: `file` is one structure, which is written and lives long enough.
            check(unsafe { libc::poll(&mut file, 1, -1) })?;
            Ok(file.revents)
        });
        Self {
            thread,
            id,
            known: std::cell::Cell::new(0),
        }
    }

    fn id(&self) -> io::Result<i32> {
        if self.known.get() == 0 {
            self.known.set(self.id.recv().map_err(io::Error::other)?);
        }
        Ok(self.known.get())
    }

    /// Whether the thread sleeps in the call.
    pub(crate) fn sleeps(&self) -> io::Result<bool> {
        let path = format!("/proc/self/task/{}/syscall", self.id()?);
        let number = format!("{} ", libc::SYS_poll);
        Ok(std::fs::read_to_string(path)?.starts_with(&number))
    }

    /// Sends the thread a signal, after which a poll does not go on, and waits for its end. Returns
    /// the result of the call.
    pub(crate) fn wake_and_join(self) -> io::Result<io::Result<c_short>> {
        handle(libc::SIGUSR1, false)?;
        let process = std::process::id();
        // SAFETY: it takes no memory.
        check_word(unsafe { libc::syscall(libc::SYS_tgkill, process, self.id()?, libc::SIGUSR1) })?;
        let panicked = |_| io::Error::other("the thread panicked");
        self.thread.join().map_err(panicked)
    }
}

/// Lets this process leave a core dump of any size when it dies.
pub(crate) fn allow_core_dump() -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: `limit` is only read.
    check(unsafe { libc::setrlimit(libc::RLIMIT_CORE, &limit) }).map(drop)
}
