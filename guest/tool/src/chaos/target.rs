//! A process that the device is bound to from outside.
//!
//! Everything here is about the address space that the process had when it was bound, except for
//! advice, which changes nothing that a program can see. It does not know when anything is done, or
//! why.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use hmm::{Destination, Device, Migration, Operation, Outcome, PageRange, Process, SpaceCounters};
use rustix::process::{pidfd_open, Pid, PidfdFlags};

use super::family::Program;

/// Advice about memory that leaves its contents and its VMA as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Advice {
    /// Use a huge page.
    Collapse,
    /// Reclaim it soon.
    Cold,
    /// Reclaim it now.
    PageOut,
}

/// How long a job may take. The device needs microseconds for a page, and a late one some seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// A bound process.
#[derive(Debug)]
pub(super) struct Target {
    pid: i32,
    program: Program,
    pidfd: OwnedFd,
    memory: File,
    pagemap: File,
    process: Process,
}

impl Target {
    /// Binds a device to a process that executes this program.
    ///
    /// # Errors
    ///
    /// When there is no such process any more, or it may not be bound.
    pub(super) fn bind(device: &Path, pid: i32, program: Program) -> anyhow::Result<Self> {
        let number = Pid::from_raw(pid).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let pidfd = pidfd_open(number, PidfdFlags::empty())?;
        let proc = |name| format!("/proc/{pid}/{name}");
        let memory = File::options().read(true).write(true).open(proc("mem"))?;
        let pagemap = File::open(proc("pagemap"))?;
        let process = Device::open(device)?.bind_process(pidfd.as_fd(), memory.as_fd())?;
        // The number may have become another process's since it was looked for. The binding and the
        // files are of one process, so that it is enough to look once more.
        if Program::of(pid) != Some(program) {
            return Err(io::Error::from_raw_os_error(libc::ESRCH).into());
        }
        Ok(Self {
            pid,
            program,
            pidfd,
            memory,
            pagemap,
            process,
        })
    }

    /// The number of the process.
    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Whether it still executes this program.
    pub(super) fn is_of(&self, program: Program) -> bool {
        self.program == program && !self.process.is_over()
    }

    /// Its pages, as `/proc` describes them.
    pub(super) fn pagemap(&self) -> &File {
        &self.pagemap
    }

    /// Reads its memory as its CPU would.
    pub(super) fn read(&self, address: usize, into: &mut [u8]) -> io::Result<()> {
        self.memory.read_exact_at(into, address as u64)
    }

    /// Moves its pages.
    pub(super) fn migrate(
        &self,
        range: Range<usize>,
        destination: Destination,
    ) -> hmm::Result<Migration> {
        self.process.migrate(PageRange::around(range), destination)
    }

    /// Runs a job on its memory. A job that waits for a page that the process's own program provides
    /// is cancelled after a while.
    pub(super) fn run(&self, operation: impl Into<Operation>) -> hmm::Result<Outcome<[u64; 4]>> {
        self.process.run_within(operation, PATIENCE)
    }

    /// What has happened to it on the device.
    pub(super) fn counters(&self) -> hmm::Result<SpaceCounters> {
        self.process.counters()
    }

    /// Gives advice about its memory; returns whether the kernel has taken it.
    pub(super) fn advise(&self, range: &Range<usize>, advice: Advice) -> bool {
        let advice = match advice {
            Advice::Collapse => libc::MADV_COLLAPSE,
            Advice::Cold => libc::MADV_COLD,
            Advice::PageOut => libc::MADV_PAGEOUT,
        };
        let part = libc::iovec {
            iov_base: std::ptr::without_provenance_mut(range.start),
            iov_len: range.len(),
        };
        // SAFETY: the kernel reads one `iovec`. The addresses in it are another process's, and this
        // advice changes no contents.
        let taken = unsafe {
            libc::syscall(
                libc::SYS_process_madvise,
                self.pidfd.as_raw_fd(),
                &raw const part,
                1_usize,
                advice,
                0_u32,
            )
        };
        taken >= 0
    }
}
