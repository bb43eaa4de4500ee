//! A process that is being killed, and whose memory is reaped while another process moves it.
//!
//! It does not know when the device copies.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::thread;

use anyhow::{anyhow, ensure, Context, Result};
use hmm::{page_size, Destination, Device, PageRange};
use hmm_cli::say;
use hmm_tool::region::Region;
use nix::sys::ptrace;
use nix::sys::signal::{kill, raise, SigSet, Signal};
use nix::sys::wait::{waitpid, WaitPidFlag, WaitStatus};
use rustix::process::{pidfd_open, PidfdFlags};
use serde_json::json;

use crate::endless::report_running;
use crate::sys;

/// A huge page.
const HUGE_BYTES: usize = 2 << 20;

/// The memory that moves, and as much that stays where it is.
const BYTES: usize = 4 * HUGE_BYTES;

/// Forks a process, moves its huge pages to the device and begins to move them back. Reports that it
/// runs, and waits for a signal (`SIGUSR1`) that tells that the device has begun to copy. Then kills the
/// process, which keeps its memory as long as it is traced, and lets the kernel reap that memory: once
/// at once, and once when the move is over. Prints what came of both, and how much memory in huge pages
/// the kernel has lost count of.
pub(crate) fn reap(device: &Path) -> Result<bool> {
    let told = SigSet::from(Signal::SIGUSR1);
    told.thread_block()?;
    // A count that would become negative is shown as zero.
    let mut other = Region::anonymous(2 * BYTES)?;
    other.prefer_large()?;
    other.bytes_mut().fill(1);
    let before = huge_bytes()?;

    let mut memory = Region::anonymous(BYTES + HUGE_BYTES)?;
    memory.prefer_large()?;
    let start = memory.address().next_multiple_of(HUGE_BYTES);
    let begin = || {
        memory.bytes_mut().fill(2);
        u8::from(raise(Signal::SIGSTOP).is_err())
    };
    // SAFETY: this process has one thread, and the child does not allocate.
    let child = unsafe { sys::fork(begin) }?;
    let pid = nix::unistd::Pid::from_raw(child.as_raw_nonzero().get());
    let stopped = waitpid(pid, Some(WaitPidFlag::WUNTRACED))?;
    ensure!(
        matches!(stopped, WaitStatus::Stopped(..)),
        "the other process has ended: {stopped:?}"
    );
    // A thread that stops as it exits still has its address space.
    ptrace::seize(pid, ptrace::Options::PTRACE_O_TRACEEXIT)?;

    let pidfd = pidfd_open(child, PidfdFlags::empty())?;
    let path = format!("/proc/{pid}/mem");
    let file = OpenOptions::new().read(true).write(true).open(&path);
    let file = file.with_context(|| format!("opening {path}"))?;
    let process = Device::open(device)?.bind_process(pidfd.as_fd(), file.as_fd())?;
    let range = PageRange::around(start..start + BYTES);
    let moved = process.migrate(range, Destination::Device)?.moved;
    ensure!(
        moved == (BYTES / page_size()) as u64,
        "{moved} pages have moved to the device"
    );

    let (first, last) = thread::scope(|scope| -> Result<_> {
        let mover = scope.spawn(|| process.migrate(range, Destination::System));
        report_running();
        told.wait()?;
        kill(pid, Signal::SIGKILL)?;
        loop {
            match waitpid(pid, None)? {
                WaitStatus::PtraceEvent(..) => break,
                WaitStatus::Stopped(..) => {}
                other => return Err(anyhow!("the other process has ended: {other:?}")),
            }
        }
        let first = reap_once(&pidfd);
        say!("{}", json!({ "first": first }));
        let moved = mover.join().map_err(|_| anyhow!("a thread panicked"))?;
        moved.context("moving the pages back")?;
        Ok((first, reap_once(&pidfd)))
    })?;
    drop(process);
    ptrace::cont(pid, None)?;
    let ended = waitpid(pid, None)?;
    ensure!(
        matches!(ended, WaitStatus::Signaled(_, Signal::SIGKILL, _)),
        "it ended with {ended:?}"
    );
    drop(memory);
    let lost = before.saturating_sub(huge_bytes()?);
    say!(
        "{}",
        json!({ "first": first, "last": last, "huge_pages_lost": lost / HUGE_BYTES })
    );
    drop(other);
    Ok(true)
}

/// Has the kernel reap the memory of a process that is being killed. Returns the error, or zero.
fn reap_once(pidfd: &impl AsFd) -> i32 {
    let pidfd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the call takes two numbers, and no memory of this process.
    let reaped = unsafe { libc::syscall(libc::SYS_process_mrelease, pidfd, 0) };
    if reaped == 0 {
        return 0;
    }
    io::Error::last_os_error().raw_os_error().unwrap_or(-1)
}

/// How much memory of all processes is in huge pages, as the kernel counts.
fn huge_bytes() -> Result<usize> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with("AnonHugePages:"));
    let kilobytes =
        line.and_then(|line| line.split_ascii_whitespace().nth(1)?.parse::<usize>().ok());
    Ok(kilobytes.context("the kernel counts no huge pages")? << 10)
}
