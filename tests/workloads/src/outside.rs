//! Another process that is bound from outside, and does nothing for it: what its owner may do, what
//! others may not, and how the binding ends.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use hmm::spec::uapi::{BindProcess, Call, VERSION};
use hmm::spec::wire::operation as op;
use hmm::{page_size, Destination, Device, Element, PageRange, Place, Process, Reason};
use hmm_tool::runner::WorkloadCtx;
use rustix::event::{poll, PollFd, PollFlags};
use rustix::io::Errno;
use rustix::process::{pidfd_open, Pid, PidfdFlags};

use crate::sys::{self, raw_ioctl, Sharing};

/// A user that owns nothing.
const NOBODY: u32 = 65_534;

/// A child process that waits until its input ends, and then executes another program if there is
/// one.
struct Other {
    child: Child,
    pidfd: OwnedFd,
}

impl Other {
    /// Starts a shell that does what the script says.
    fn start(script: &str, user: Option<u32>) -> Result<Self> {
        let mut command = Command::new("sh");
        command
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        let mut child = command.spawn().context("starting another process")?;
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        // It says that it executes the shell, and not this program any more.
        let output = child.stdout.as_mut().context("it has an output")?;
        output.read_exact(&mut [0])?;
        Ok(Self { child, pidfd })
    }

    /// One that waits for the end of its input.
    fn waiting(user: Option<u32>) -> Result<Self> {
        Self::start("echo; read line; exit 0", user)
    }

    fn memory(&self) -> Result<File> {
        let path = format!("/proc/{}/mem", self.child.id());
        let file = OpenOptions::new().read(true).write(true).open(&path);
        file.with_context(|| format!("opening {path}"))
    }

    fn bind(&self, device: &Path) -> Result<Process> {
        let memory = self.memory()?;
        Ok(Device::open(device)?.bind_process(self.pidfd.as_fd(), memory.as_fd())?)
    }

    /// The first page of its heap.
    fn heap(&self) -> Result<usize> {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.id()))?;
        let heap = maps.lines().find(|line| line.ends_with("[heap]"));
        let start = heap
            .and_then(|line| line.split_once('-'))
            .map(|(start, _)| start);
        Ok(usize::from_str_radix(
            start.context("a shell has a heap")?,
            16,
        )?)
    }

    /// Ends its input, and waits for its end.
    fn end(mut self) -> Result<bool> {
        drop(self.child.stdin.take());
        Ok(self.child.wait()?.success())
    }
}

/// What the driver says to a call with these descriptors.
fn refusal(device: &Path, pidfd: BorrowedFd<'_>, memory: BorrowedFd<'_>) -> Result<Option<Errno>> {
    Ok(refusal_of(&Device::open(device)?, pidfd, memory))
}

/// The same of an open device.
fn refusal_of(device: &Device, pidfd: BorrowedFd<'_>, memory: BorrowedFd<'_>) -> Option<Errno> {
    let mut bind = BindProcess {
        version: VERSION,
        flags: 0,
        pidfd: pidfd.as_raw_fd(),
        memory: memory.as_raw_fd(),
    };
    let address = std::ptr::from_mut(&mut bind).expose_provenance();
    // SAFETY: the call reads and writes this structure alone, and runs no job.
    unsafe { raw_ioctl(device.as_fd(), BindProcess::CODE, address) }.err()
}

/// Runs all of it. The workload's own process is bound as well.
pub(crate) fn run(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    serves(ctx)?;
    refuses(ctx)?;
    refuses_another_user(ctx)?;
    refuses_a_child_with_the_same_memory(ctx)?;
    serves_a_process_whose_first_thread_has_ended(ctx)?;
    ends_with_the_process(ctx)?;
    ends_with_the_program(ctx)?;
    Ok(())
}

fn heap_page(other: &Other) -> Result<(usize, PageRange, File)> {
    let heap = other.heap()?;
    Ok((
        heap,
        PageRange::around(heap..heap + page_size()),
        other.memory()?,
    ))
}

/// Jobs and moves are about the other process's memory, and the caller's alone to make.
fn serves(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    use std::os::unix::fs::FileExt;

    let other = Other::waiting(None)?;
    let process = other.bind(ctx.path)?;
    let (heap, page, memory) = heap_page(&other)?;
    let mut before = vec![0; page_size()];
    memory.read_exact_at(&mut before, heap as u64)?;
    let moved = process.migrate(page, Destination::Device)?;
    ctx.check_equal("pages of another process moved", moved.moved, 1);
    // A job that writes, at the end of the page, and one that reads.
    let last = heap + page_size() - 8;
    let add = op::AtomicAdd {
        address: last as u64,
        element: Element::U64,
        operand: 1,
        repeat: 3,
    };
    process.run(add)?;
    let id = i32::try_from(other.child.id())?;
    let states = ctx.space.device().residency_of(id, page)?;
    let places: Vec<Place> = states.iter().map(|state| state.place()).collect();
    ctx.check_equal("where its page is", places, vec![Place::Device]);
    let mut after = vec![0; page_size()];
    memory.read_exact_at(&mut after, heap as u64)?;
    let number = |bytes: &[u8]| {
        bytes
            .last_chunk()
            .map_or(0, |last| u64::from_ne_bytes(*last))
    };
    ctx.check_equal(
        "number that jobs have added to",
        number(&after),
        number(&before).wrapping_add(3),
    );
    let same = before[..page_size() - 8] == after[..page_size() - 8];
    ctx.check(same, || "a job has changed other bytes".to_owned());
    let sub = op::AtomicAdd {
        address: last as u64,
        element: Element::U64,
        operand: 3_u64.wrapping_neg(),
        repeat: 1,
    };
    process.run(sub)?;

    let counters = process.counters()?;
    ctx.check_equal("its jobs", counters.jobs, 2);
    ctx.check_equal("its pages to the device", counters.pages_to_device, 1);
    ctx.check(counters.cpu_fault_pages >= 1, || {
        "reading its memory did not move the page back".to_owned()
    });
    // Another file joins the same space.
    let again = other.bind(ctx.path)?;
    ctx.check_equal("its jobs, by another file", again.counters()?.jobs, 2);
    // A child of the caller's has the file, and is another process.
    let file = process.device().as_fd();
    let call = || {
        let mut counters = [0_u64; 9];
        let address = counters.as_mut_ptr().expose_provenance();
        // SAFETY: the structure of this call is of nine words.
        let called = unsafe { raw_ioctl(file, hmm::SpaceCounters::CODE, address) };
        u8::from(called != Err(Errno::PERM))
    };
    // SAFETY: the child makes one system call.
    let child = unsafe { sys::fork(call) }?;
    let ended = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())?;
    let status = ended.and_then(|(_, status)| status.exit_status());
    ctx.check_equal("a child that makes a call", status, Some(0));
    let nothing = process.run(op::Checksum {
        source: 4096,
        bytes: 8,
    });
    let reason = nothing.err().and_then(|error| error.job()?.reason);
    ctx.check_equal("a job on nothing", reason, Some(Reason::Unmapped));
    ctx.check(other.end()?, || "the process has suffered".to_owned());
    Ok(())
}

/// Descriptors that prove nothing.
fn refuses(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let (one, other) = (Other::waiting(None)?, Other::waiting(None)?);
    let path = ctx.path;
    let memory = one.memory()?;
    let others = other.memory()?;
    let pid = one.child.id();
    let readable = File::open(format!("/proc/{pid}/mem"))?;
    let null = File::open("/dev/null")?;
    let environment = File::open(format!("/proc/{pid}/environ"))?;
    let attribute = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/{pid}/attr/current"));
    let cases = [
        ("no pidfd", null.as_fd(), memory.as_fd(), Errno::BADF),
        ("a directory", one.pidfd.as_fd(), null.as_fd(), Errno::BADF),
        (
            "memory of another process",
            one.pidfd.as_fd(),
            others.as_fd(),
            Errno::SRCH,
        ),
        (
            "memory that can only be read",
            one.pidfd.as_fd(),
            readable.as_fd(),
            Errno::ACCESS,
        ),
        (
            "another file with the same data",
            one.pidfd.as_fd(),
            environment.as_fd(),
            Errno::BADF,
        ),
    ];
    for (what, pidfd, memory, expected) in cases {
        let refused = refusal(path, pidfd, memory)?;
        ctx.check_equal(what, refused, Some(expected));
    }
    // A kernel without security modules has no such file.
    if let Ok(attribute) = attribute {
        let refused = refusal(path, one.pidfd.as_fd(), attribute.as_fd())?;
        ctx.check_equal(
            "a writable file with the same data",
            refused,
            Some(Errno::BADF),
        );
    }
    let process = one.bind(path)?;
    let pidfd = pidfd_open(Pid::from_child(&one.child), PidfdFlags::empty())?;
    let again = refusal_of(process.device(), pidfd.as_fd(), memory.as_fd());
    ctx.check_equal("a file that is bound", again, Some(Errno::BUSY));
    ctx.check(one.end()? && other.end()?, || {
        "a process has suffered".to_owned()
    });
    Ok(())
}

/// A process that is not of root, although root has given it everything that it could ask for.
fn refuses_another_user(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let roots = Other::waiting(None)?;
    let own = Other::waiting(Some(NOBODY))?;
    let (roots_memory, own_memory) = (roots.memory()?, own.memory()?);
    for (what, other, memory) in [
        ("root's process", &roots, &roots_memory),
        // The user may trace it, but not give advice about it.
        ("a process of the same user", &own, &own_memory),
    ] {
        let device = Device::open(ctx.path)?;
        let (pidfd, memory) = (other.pidfd.as_fd(), memory.as_fd());
        let ask = || {
            if !sys::become_user(NOBODY) {
                return 2;
            }
            u8::from(refusal_of(&device, pidfd, memory) != Some(Errno::ACCESS))
        };
        // SAFETY: the child makes system calls only.
        let child = unsafe { sys::fork(ask) }?;
        let ended = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())?;
        let status = ended.and_then(|(_, status)| status.exit_status());
        ctx.check_equal(what, status, Some(0));
    }
    // Root may bind a user's process, which is accounted to that user.
    let process = own.bind(ctx.path)?;
    ctx.check_equal("jobs of a user's process", process.counters()?.jobs, 0);
    drop(process);
    ctx.check(roots.end()? && own.end()?, || {
        "a process has suffered".to_owned()
    });
    Ok(())
}

/// A child as of vfork(2), which a binding would give the caller's own memory.
fn refuses_a_child_with_the_same_memory(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let (input, mut output) = std::io::pipe()?;
    let mut stack = vec![0_u128; 4096];
    let child = sys::share(&mut stack, Sharing::Memory, input.as_fd())?;
    let pidfd = pidfd_open(child, PidfdFlags::empty())?;
    let path = format!("/proc/{}/mem", child.as_raw_nonzero());
    let memory = OpenOptions::new().read(true).write(true).open(&path);
    let refused = memory
        .with_context(|| format!("opening {path}"))
        .and_then(|memory| refusal(ctx.path, pidfd.as_fd(), memory.as_fd()));
    // It must have ended before its stack goes. It has this end of the pipe as well.
    output.write_all(b"x")?;
    rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())?;
    ctx.check_equal("a child with the same memory", refused?, Some(Errno::INVAL));
    Ok(())
}

/// The process is there as long as one of its threads is.
fn serves_a_process_whose_first_thread_has_ended(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let (input, output) = std::io::pipe()?;
    let (mut told, tell) = std::io::pipe()?;
    let mut stack = vec![0_u128; 4096];
    let word = Box::new(7_u64);
    let begin = || {
        // The other end must be closed when the parent closes its own.
        sys::close(output.as_fd());
        let thread = sys::share(&mut stack, Sharing::Process, input.as_fd());
        let number = thread.map_or(0, |thread| thread.as_raw_nonzero().get());
        sys::write(tell.as_fd(), &number.to_ne_bytes());
        sys::end_thread()
    };
    // SAFETY: the child makes system calls only, and its stack is a copy.
    let child = unsafe { sys::fork(begin) }?;
    let mut number = [0; 4];
    told.read_exact(&mut number)?;
    let thread = i32::from_ne_bytes(number);
    // Since Linux 6.16 no event tells of the end of a first thread while there are others.
    let stat = format!("/proc/{}/stat", child.as_raw_nonzero());
    while !std::fs::read_to_string(&stat)?.contains(") Z ") {
        std::thread::yield_now();
    }

    let path = format!(
        "/proc/{child}/task/{thread}/mem",
        child = child.as_raw_nonzero()
    );
    let memory = OpenOptions::new().read(true).write(true).open(&path);
    let memory = memory.with_context(|| format!("opening {path}"))?;
    let pidfd = pidfd_open(child, PidfdFlags::empty())?;
    let process = Device::open(ctx.path)?.bind_process(pidfd.as_fd(), memory.as_fd())?;
    let sum = process.run(op::AtomicAdd {
        address: (&raw const *word).addr() as u64,
        element: Element::U64,
        operand: 1,
        repeat: 1,
    });
    ctx.check(sum.is_ok(), || format!("a job on its memory: {sum:?}"));
    ctx.check_equal("the same word here", *word, 7);
    ctx.check(!process.is_over(), || "it is over".to_owned());
    drop(output);
    let ended = rustix::process::waitpid(Some(child), rustix::process::WaitOptions::empty())?;
    let status = ended.and_then(|(_, status)| status.exit_status());
    ctx.check_equal("how it has ended", status, Some(0));
    Ok(())
}

/// After the end, each call says so, and nothing is left.
fn check_end(ctx: &mut WorkloadCtx<'_>, process: &Process, page: PageRange) -> Result<()> {
    let mut files = [PollFd::new(process, PollFlags::empty())];
    poll(&mut files, None)?;
    ctx.check_equal(
        "what polling tells at the end",
        files[0].revents(),
        PollFlags::HUP,
    );
    let errno = |error: hmm::Error| error.errno().map(Errno::from_raw_os_error);
    let moved = process.migrate(page, Destination::Device);
    ctx.check_equal(
        "a move after the end",
        moved.err().and_then(errno),
        Some(Errno::SRCH),
    );
    let checksum = op::Checksum {
        source: page.address(),
        bytes: 8,
    };
    let read = process.run(checksum);
    ctx.check_equal(
        "a job after the end",
        read.err().and_then(errno),
        Some(Errno::SRCH),
    );
    ctx.check(process.is_over(), || "it is not over".to_owned());
    ctx.check_equal("its jobs in the end", process.counters()?.jobs, 1);
    Ok(())
}

fn ends_with_the_process(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let other = Other::waiting(None)?;
    let process = other.bind(ctx.path)?;
    let (heap, page, _) = heap_page(&other)?;
    ctx.check(!process.is_over(), || "it is over at once".to_owned());
    process.run(op::Checksum {
        source: heap as u64,
        bytes: 8,
    })?;
    process.migrate(page, Destination::Device)?;
    ctx.check(other.end()?, || "the process has suffered".to_owned());
    check_end(ctx, &process, page)
}

fn ends_with_the_program(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let mut other = Other::start(
        "echo; read line; exec sh -c 'echo; read line; exit 0'",
        None,
    )?;
    let process = other.bind(ctx.path)?;
    let (heap, page, before) = heap_page(&other)?;
    // A job that waits for what never comes: it ends with the address space.
    process.run(op::Checksum {
        source: heap as u64,
        bytes: 8,
    })?;
    let input = other.child.stdin.as_mut().context("it has an input")?;
    input.write_all(b"go\n")?;
    let output = other.child.stdout.as_mut().context("it has an output")?;
    output.read_exact(&mut [0])?;
    check_end(ctx, &process, page)?;
    let stale = refusal(ctx.path, other.pidfd.as_fd(), before.as_fd())?;
    ctx.check_equal("memory of an earlier program", stale, Some(Errno::SRCH));
    // The next program can be bound, too.
    let next = other.bind(ctx.path)?;
    ctx.check(!next.is_over(), || "the next program is over".to_owned());
    ctx.check(other.end()?, || "the process has suffered".to_owned());
    Ok(())
}
