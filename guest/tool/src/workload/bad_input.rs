//! Everything that the driver and the device must refuse, and how.
//!
//! Calls are made as raw ioctls, because the library would not make them. After each
//! case an ordinary job must still get a right answer.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use hmm::spec::uapi::{
    Bind, Call, Migrate, Residency, Submit, Wait, MAX_RESIDENCY_PAGES, MAX_SUBMIT,
};
use hmm::spec::wire::job::{JobDescriptor, JobReply};
use hmm::spec::wire::operation as op;
use hmm::spec::wire::rights;
use hmm::{page_size, work, Device, Element, Operation, Reason, Space, Status};
use rustix::io::Errno;
use rustix::process::{waitpid, WaitOptions};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::Trial;
use crate::sys::{self, Staircase};

/// An address at which nothing is ever mapped: the kernel keeps the lowest 64 KiB free.
const UNMAPPED: u64 = 0x8000;

/// An address that no process can have: bits 47 to 63 differ.
const NOT_CANONICAL: u64 = 1 << 62;

/// An address of the kernel's own half.
const KERNEL: u64 = 0xffff_8880_0000_0000;

/// Runs all cases.
pub(super) fn run(trial: &mut Trial<'_>) -> Result<()> {
    trial.report.size = 0;
    let stairs = Staircase::new(page_size()).context("mapping pages of several rights")?;
    calls_before_bind(trial)?;
    calls(trial, &stairs)?;
    jobs(trial, &stairs)?;
    fork_of_the_process(trial, &stairs)?;
    close_with_a_job_in_flight(trial)
}

/// Counts a case, and makes sure that the next job works.
fn next_job_works(trial: &mut Trial<'_>, case: &str) -> Result<()> {
    trial.report.size += 1;
    let numbers: Vec<u64> = (0..1000).map(|_| u64::from(trial.random.u32(..))).collect();
    let sum = trial
        .on_device(work::sum(&numbers))
        .with_context(|| format!("an ordinary job after \"{case}\""))?;
    trial.check_equal("sum of an ordinary job", sum, numbers.iter().sum());
    Ok(())
}

/// Makes a call of any code with any structure.
fn raw<T: IntoBytes + FromBytes>(
    file: BorrowedFd<'_>,
    code: u32,
    argument: &mut T,
) -> Result<(), Errno> {
    let address = std::ptr::from_mut(argument).expose_provenance();
    // SAFETY: the structure is borrowed mutably, and what the code says of its size is
    // never more than it has (`refused` callers and the code's own definition). Memory
    // that the structures of this file name is a `Staircase`, zeros of its own, or not
    // mapped; jobs work on the former and are awaited before it is gone.
    unsafe { sys::raw_ioctl(file, code, address) }
}

/// Checks that a call is refused, and why.
fn refused<T: IntoBytes + FromBytes>(
    trial: &mut Trial<'_>,
    file: BorrowedFd<'_>,
    case: &str,
    code: u32,
    mut argument: T,
    expected: Errno,
) -> Result<()> {
    let answer = raw(file, code, &mut argument);
    trial.check_equal(case, answer, Err(expected));
    next_job_works(trial, case)
}

/// Calls on a file that no process is bound to.
fn calls_before_bind(trial: &mut Trial<'_>) -> Result<()> {
    let device = Device::open(trial.path)?;
    let file = device.as_fd();
    let right = Bind {
        version: hmm::spec::uapi::VERSION,
        flags: 0,
    };
    let version = Bind {
        version: right.version + 1,
        ..right
    };
    refused(
        trial,
        file,
        "another version",
        Bind::CODE,
        version,
        Errno::PROTO,
    )?;
    let flags = Bind { flags: 1, ..right };
    refused(
        trial,
        file,
        "unknown flags of bind",
        Bind::CODE,
        flags,
        Errno::INVAL,
    )?;

    let job = descriptor(op::Sum {
        source: UNMAPPED,
        count: 0,
        element: Element::U64,
    });
    refused(
        trial,
        file,
        "a job, not bound",
        Submit::CODE,
        submit(&job),
        Errno::PERM,
    )?;
    refused(
        trial,
        file,
        "a wait, not bound",
        Wait::CODE,
        wait(1),
        Errno::PERM,
    )?;
    let here = migrate(trial_page(), page_size() as u64);
    refused(
        trial,
        file,
        "a migration, not bound",
        Migrate::CODE,
        here,
        Errno::PERM,
    )
}

/// The address of a page of this process.
fn trial_page() -> u64 {
    static PAGE: u64 = 0;
    let address = std::ptr::from_ref(&PAGE).addr();
    (address - address % page_size()) as u64
}

fn descriptor(operation: impl Into<Operation>) -> JobDescriptor {
    operation.into().encode()
}

fn submit(job: &JobDescriptor) -> Submit {
    Submit {
        jobs: std::ptr::from_ref(job).expose_provenance() as u64,
        count: 1,
        flags: 0,
        first_fence: 0,
        submitted: 0,
        reserved: 0,
    }
}

fn wait(fence: u64) -> Wait {
    Wait {
        fence,
        timeout: -1,
        result: JobReply::new_zeroed(),
    }
}

fn migrate(address: u64, bytes: u64) -> Migrate {
    Migrate {
        address,
        bytes,
        destination: 1,
        flags: 0,
        moved: 0,
        skipped: 0,
        no_memory: 0,
    }
}

fn residency(address: u64, states: &mut [u8]) -> Residency {
    Residency {
        pid: 0,
        flags: 0,
        address,
        pages: states.len() as u64,
        states: states.as_mut_ptr().expose_provenance() as u64,
    }
}

/// Calls with wrong arguments.
fn calls(trial: &mut Trial<'_>, stairs: &Staircase) -> Result<()> {
    let space = trial.space;
    let file = space.device().as_fd();
    let page = page_size() as u64;
    let here = stairs.writable() as u64;

    // A request code has the number in its first byte and the size in its third.
    refused(
        trial,
        file,
        "an unknown number",
        Wait::CODE | 0x3f,
        wait(1),
        Errno::NOTTY,
    )?;
    let shorter = Wait::CODE - (8 << 16);
    refused(
        trial,
        file,
        "a shorter structure",
        shorter,
        wait(1),
        Errno::NOTTY,
    )?;
    let longer = [0_u64; size_of::<Wait>() / 8 + 1];
    let longer_code = Wait::CODE + (8 << 16);
    refused(
        trial,
        file,
        "a longer structure",
        longer_code,
        longer,
        Errno::NOTTY,
    )?;
    let again = Bind {
        version: hmm::spec::uapi::VERSION,
        flags: 0,
    };
    refused(trial, file, "a second bind", Bind::CODE, again, Errno::BUSY)?;
    for code in [
        Bind::CODE,
        Submit::CODE,
        Wait::CODE,
        Migrate::CODE,
        Residency::CODE,
    ] {
        for address in [UNMAPPED, stairs.inaccessible() as u64, KERNEL] {
            let address = usize::try_from(address)?;
            // SAFETY: the structure cannot be read, so there is no call to carry out.
            let answer = unsafe { sys::raw_ioctl(file, code, address) };
            trial.check_equal("a structure that is not there", answer, Err(Errno::FAULT));
        }
    }

    // Enough zeros that even a driver that forgot to check finds jobs that do nothing.
    let zeros = vec![JobDescriptor::new_zeroed(); MAX_SUBMIT as usize + 1];
    let right = submit(&zeros[0]);
    let wrong = [
        ("no jobs", Submit { count: 0, ..right }, Errno::INVAL),
        (
            "too many jobs",
            Submit {
                count: MAX_SUBMIT + 1,
                ..right
            },
            Errno::INVAL,
        ),
        (
            "unknown flags of submit",
            Submit { flags: 1, ..right },
            Errno::INVAL,
        ),
        (
            "a reserved field",
            Submit {
                reserved: 1,
                ..right
            },
            Errno::INVAL,
        ),
        (
            "jobs that are not there",
            Submit {
                jobs: UNMAPPED,
                ..right
            },
            Errno::FAULT,
        ),
        (
            "jobs in the kernel",
            Submit {
                jobs: KERNEL,
                ..right
            },
            Errno::FAULT,
        ),
    ];
    for (case, argument, errno) in wrong {
        refused(trial, file, case, Submit::CODE, argument, errno)?;
    }

    refused(
        trial,
        file,
        "a fence of no job",
        Wait::CODE,
        wait(u64::MAX),
        Errno::NOENT,
    )?;
    let nothing = descriptor(op::Sum {
        source: here,
        count: 0,
        element: Element::U64,
    });
    let (fence, _) = complete(file, &nothing)?;
    refused(
        trial,
        file,
        "a result fetched twice",
        Wait::CODE,
        wait(fence),
        Errno::NOENT,
    )?;

    let right = migrate(here, page);
    let wrong = [
        (
            "pages not aligned",
            Migrate {
                address: here + 8,
                ..right
            },
        ),
        (
            "a part of a page",
            Migrate {
                bytes: page / 2,
                ..right
            },
        ),
        (
            "a range that wraps",
            Migrate {
                address: page.wrapping_neg(),
                bytes: 2 * page,
                ..right
            },
        ),
        (
            "an unknown destination",
            Migrate {
                destination: 7,
                ..right
            },
        ),
        ("unknown flags of migrate", Migrate { flags: 1, ..right }),
        (
            "more than all pages",
            Migrate {
                bytes: page.wrapping_neg(),
                ..right
            },
        ),
    ];
    for (case, argument) in wrong {
        refused(trial, file, case, Migrate::CODE, argument, Errno::INVAL)?;
    }
    // Where nothing is mapped there is nothing to move, which is no error.
    let nowhere = [
        ("pages that are not mapped", UNMAPPED),
        ("pages of the kernel", KERNEL),
        ("pages that cannot be", NOT_CANONICAL),
    ];
    for (case, address) in nowhere {
        let mut argument = Migrate { address, ..right };
        let answer = raw(file, Migrate::CODE, &mut argument);
        let pages = answer.map(|()| (argument.moved, argument.skipped));
        trial.check_equal(case, pages, Ok((0, 1)));
        next_job_works(trial, case)?;
    }

    let mut states = vec![0; usize::try_from(MAX_RESIDENCY_PAGES)? + 1];
    let right = residency(here, &mut states[..1]);
    let none = Residency { pages: 0, ..right };
    let many = Residency {
        pages: MAX_RESIDENCY_PAGES + 1,
        ..right
    };
    let kernel = Residency {
        states: KERNEL,
        ..right
    };
    let wrong = [
        ("no pages to look at", none, Errno::INVAL),
        ("too many pages to look at", many, Errno::INVAL),
        (
            "looking between pages",
            Residency {
                address: here + 8,
                ..right
            },
            Errno::INVAL,
        ),
        (
            "unknown flags of residency",
            Residency { flags: 1, ..right },
            Errno::INVAL,
        ),
        (
            "states that have no room",
            Residency {
                states: UNMAPPED,
                ..right
            },
            Errno::FAULT,
        ),
        ("states in the kernel", kernel, Errno::FAULT),
        (
            "a process that is not bound",
            Residency { pid: 1, ..right },
            Errno::SRCH,
        ),
    ];
    for (case, argument, errno) in wrong {
        refused(trial, file, case, Residency::CODE, argument, errno)?;
    }
    Ok(())
}

/// Runs a job as it is: its fence and how it ended.
fn complete(file: BorrowedFd<'_>, job: &JobDescriptor) -> Result<(u64, JobReply)> {
    let mut submit = submit(job);
    raw(file, Submit::CODE, &mut submit).context("submitting a job")?;
    let mut wait = wait(submit.first_fence);
    loop {
        match raw(file, Wait::CODE, &mut wait) {
            Err(Errno::INTR) => {}
            answer => {
                answer.context("waiting for a job")?;
                return Ok((submit.first_fence, wait.result));
            }
        }
    }
}

/// How a job must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// With this status and nothing to add.
    Status(Status),
    /// With `BadArgument` and this first result.
    BadArgument(u64),
    /// With a fault at this address, wanting this right, for this reason.
    Fault(u64, u32, Reason),
}

impl End {
    fn fits(self, reply: &JobReply) -> bool {
        let status = Status::from_raw(reply.status.get());
        match self {
            Self::Status(expected) => status == Some(expected),
            Self::BadArgument(result) => {
                status == Some(Status::BadArgument) && reply.values[0].get() == result
            }
            Self::Fault(address, right, reason) => {
                status == Some(Status::Fault)
                    && reply.address.get() == address
                    && reply.access.get() & right != 0
                    && Reason::from_raw(reply.reason.get()) == Some(reason)
            }
        }
    }
}

/// Jobs that cannot end well.
fn jobs(trial: &mut Trial<'_>, stairs: &Staircase) -> Result<()> {
    let file = trial.space.device().as_fd();
    for (case, job, end) in bad_jobs(stairs) {
        let (_, reply) = complete(file, &job).with_context(|| case.to_owned())?;
        trial.check(end.fits(&reply), || {
            format!(
                "{case}: {end:x?} is right, but the job ended with {}, reason {}, address \
                 {:#x}, access {:#x}, result {}",
                Status::from_raw(reply.status.get()).map_or("an unknown status", Status::name),
                reply.reason.get(),
                reply.address.get(),
                reply.access.get(),
                reply.values[0].get(),
            )
        });
        next_job_works(trial, case)?;
    }
    trial.check(stairs.is_untouched(), || {
        "a job has written to read-only memory".into()
    });
    Ok(())
}

/// A job that follows what it finds in memory: numbers at an address of their own.
static WILD: [u64; 4] = [UNMAPPED, 0, 0, 0];
/// Indices of which the third leads nowhere, into a table of four.
static INDICES: [u64; 4] = [0, 3, 4, 1];
/// Offsets of a graph of two vertices.
static OFFSETS: [u64; 3] = [0, 1, 2];
/// Edges of it, the second to a vertex that does not exist.
static EDGES: [u32; 2] = [1, 9];

fn address_of<T>(memory: &[T]) -> u64 {
    memory.as_ptr().expose_provenance() as u64
}

#[rustfmt::skip] // A table.
fn bad_jobs(stairs: &Staircase) -> Vec<(&'static str, JobDescriptor, End)> {
    use End::{BadArgument, Fault, Status as Ends};
    let (writable, read_only) = (stairs.writable() as u64, stairs.read_only() as u64);
    let none = stairs.inaccessible() as u64;
    let page = page_size() as u64;
    let sum = |source, count| descriptor(op::Sum { source, count, element: Element::U64 });
    let fill = |destination, bytes| descriptor(op::Fill { destination, bytes, pattern: 0x55 });
    let empty = sum(writable, 0);
    // A node that is its own successor.
    let ring = read_only;

    let unknown = JobDescriptor { operation: 999.into(), ..empty };
    let nameless = JobDescriptor { operation: 0.into(), ..empty };
    let reserved = JobDescriptor { reserved: 1.into(), ..empty };
    let mut surplus = empty;
    surplus.arguments[13] = 1.into();
    let mut typeless = empty;
    typeless.arguments[2] = 99.into();

    let walk = |head, next_offset| descriptor(op::ListWalk {
        head, next_offset, value_offset: next_offset, key: 0, limit: 1000,
    });
    let tree = descriptor(op::TreeSum {
        root: ring, left_offset: 0, right_offset: 0, value_offset: 8, limit: 1000,
    });
    let add = |address, element| descriptor(op::AtomicAdd {
        address, element, operand: 1, repeat: 1,
    });
    let dot = descriptor(op::Dot { x: writable, y: writable, count: 8, element: Element::U64 });
    let gather = descriptor(op::Gather {
        table: address_of(&WILD), table_count: 4, index: address_of(&INDICES),
        destination: writable, count: 4, element: Element::U64,
    });
    let bfs = descriptor(op::Bfs {
        offsets: address_of(&OFFSETS), edges: address_of(&EDGES), vertex_count: 2, edge_count: 2,
        start: 0, levels: writable, queue: writable + 64,
    });
    let gemm = descriptor(op::Gemm {
        a: writable, b: writable, c: writable + 2048, m: 4, n: 4, k: 4,
        a_stride: 3, b_stride: 4, c_stride: 4, alpha: 1.0, beta: 0.0,
    });
    let copy = |source, destination, bytes| descriptor(op::Copy { source, destination, bytes });

    vec![
        ("an unknown operation", unknown, Ends(Status::Unsupported)),
        ("operation zero", nameless, Ends(Status::Unsupported)),
        ("a reserved field of a job", reserved, Ends(Status::Malformed)),
        ("an argument too many", surplus, Ends(Status::Malformed)),
        ("an unknown element", typeless, Ends(Status::Malformed)),
        ("reading what is not mapped", sum(UNMAPPED, 8), Fault(UNMAPPED, rights::READ, Reason::Unmapped)),
        ("writing what is not mapped", fill(UNMAPPED, 8), Fault(UNMAPPED, rights::WRITE, Reason::Unmapped)),
        ("an address that cannot be", sum(NOT_CANONICAL, 8), Fault(NOT_CANONICAL, rights::READ, Reason::Unmapped)),
        ("reading the kernel", sum(KERNEL, 8), Fault(KERNEL, rights::READ, Reason::Unmapped)),
        ("writing the kernel", fill(KERNEL, 8), Fault(KERNEL, rights::WRITE, Reason::Unmapped)),
        ("reading PROT_NONE", sum(none, 8), Fault(none, rights::READ, Reason::Denied)),
        ("writing PROT_NONE", fill(none, 8), Fault(none, rights::WRITE, Reason::Denied)),
        ("writing what is read-only", fill(read_only, page), Fault(read_only, rights::WRITE, Reason::Denied)),
        ("copying to what is read-only", copy(writable, read_only, 8), Fault(read_only, rights::WRITE, Reason::Denied)),
        ("an addition to what is read-only", add(read_only, Element::U64), Fault(read_only, rights::WRITE | rights::ATOMIC, Reason::Denied)),
        ("reading what is read-only", sum(read_only, 8), Ends(Status::Ok)),
        ("more elements than addresses", sum(writable, u64::MAX), Ends(Status::BadArgument)),
        ("a length that wraps", copy(writable, writable + 64, u64::MAX), Ends(Status::BadAddress)),
        ("terabytes to read", sum(writable, 1 << 40), Fault(none, rights::READ, Reason::Denied)),
        ("terabytes to write", fill(writable, 1 << 43), Fault(read_only, rights::WRITE, Reason::Denied)),
        ("an atomic between words", add(writable + 4, Element::U64), Ends(Status::BadAddress)),
        ("an atomic of no integer", add(writable, Element::F32), Ends(Status::BadArgument)),
        ("a dot product of integers", dot, Ends(Status::BadArgument)),
        ("an index outside the table", gather, BadArgument(2)),
        ("an edge to nowhere", bfs, Ends(Status::BadArgument)),
        ("rows longer than their stride", gemm, Ends(Status::BadArgument)),
        ("a list that bites its tail", walk(ring, 0), Ends(Status::Bound)),
        ("a tree that grows into itself", tree, Ends(Status::Bound)),
        ("a list that leads nowhere", walk(address_of(&WILD), 0), Fault(UNMAPPED, rights::READ, Reason::Unmapped)),
    ]
}

/// A child of this process has the file, but not the addresses.
fn fork_of_the_process(trial: &mut Trial<'_>, stairs: &Staircase) -> Result<()> {
    let file = trial.space.device().as_fd();
    let source = stairs.writable() as u64;
    let job = descriptor(op::Sum {
        source,
        count: 1,
        element: Element::U64,
    });
    let mut argument = submit(&job);
    let in_the_child = || u8::from(raw(file, Submit::CODE, &mut argument) != Err(Errno::PERM));
    // SAFETY: the child makes one system call.
    let child = unsafe { sys::fork(in_the_child) }.context("forking")?;
    let ended = waitpid(Some(child), WaitOptions::empty()).context("waiting for the child")?;
    let status = ended.and_then(|(_, status)| status.exit_status());
    trial.check_equal(
        "a job of a forked child is refused (0) or not (1)",
        status,
        Some(0),
    );
    next_job_works(trial, "a job of a forked child")
}

/// Closing the file ends what it has in flight; nothing is written afterwards.
fn close_with_a_job_in_flight(trial: &mut Trial<'_>) -> Result<()> {
    let device = trial.space.device();
    let before = device.counters()?;
    let counter = Box::new(AtomicU64::new(0));
    let other = Device::open(trial.path)?.bind()?;
    start_endless(&other, &counter)?;
    while counter.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    drop(other);
    let at_close = counter.load(Ordering::Relaxed);
    next_job_works(trial, "a file closed with a job in flight")?;
    let later = counter.load(Ordering::Relaxed);
    trial.check_equal("additions after the file was closed", later - at_close, 0);
    let after = device.counters()?;
    let spaces = after.device.spaces.get();
    trial.check_equal("spaces on the device", spaces, before.device.spaces.get());
    let jobs = after.device.jobs.get();
    trial.check_equal("jobs on the device", jobs, before.device.jobs.get());
    Ok(())
}

/// Submits a job that does not end by itself, and checks that a wait for it runs out.
fn start_endless(space: &Space, counter: &AtomicU64) -> Result<()> {
    let endless = op::AtomicAdd {
        address: counter.as_ptr().expose_provenance() as u64,
        element: Element::U64,
        operand: 1,
        repeat: u64::MAX,
    };
    // SAFETY: the counter outlives the space, whose end ends the job, and all others
    // who use it do so atomically.
    let job = unsafe { space.submit(endless) }?;
    let mut look = Wait {
        timeout: 0,
        ..wait(job.fence())
    };
    // Its end is not awaited: that is what is tried here.
    std::mem::forget(job);
    match raw(space.device().as_fd(), Wait::CODE, &mut look) {
        Err(Errno::TIME) => Ok(()),
        other => anyhow::bail!("looking for a job that runs gave {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmm::spec::wire::Layout;

    #[test]
    fn every_bad_job_is_bad_in_its_own_way() {
        let stairs = Staircase::new(page_size()).unwrap();
        let jobs = bad_jobs(&stairs);
        for (at, (case, job, _)) in jobs.iter().enumerate() {
            for (other, same, _) in &jobs[..at] {
                assert_ne!((job, case), (same, other));
            }
        }
        let endings: Vec<_> = jobs.iter().map(|(.., end)| *end).collect();
        assert!(endings.contains(&End::BadArgument(2)));
    }

    #[test]
    fn another_size_is_another_code() {
        let shorter = Wait::CODE - (8 << 16);
        assert_eq!(
            (shorter >> 16) & 0x3fff,
            u32::try_from(Wait::SIZE - 8).unwrap()
        );
    }

    #[test]
    fn an_end_fits_only_the_reply_that_says_all_of_it() {
        let mut reply = JobReply::new_zeroed();
        reply.status = Status::Fault.raw().into();
        reply.reason = Reason::Denied.raw().into();
        reply.address = 64.into();
        reply.access = rights::WRITE.into();
        assert!(End::Fault(64, rights::WRITE, Reason::Denied).fits(&reply));
        assert!(!End::Fault(65, rights::WRITE, Reason::Denied).fits(&reply));
        assert!(!End::Fault(64, rights::READ, Reason::Denied).fits(&reply));
        assert!(!End::Fault(64, rights::WRITE, Reason::Unmapped).fits(&reply));
        assert!(!End::Status(Status::Ok).fits(&reply));
    }
}
