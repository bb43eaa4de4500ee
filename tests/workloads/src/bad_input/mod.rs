//! Everything that the driver and the device must refuse, and how they refuse it.
//!
//! Calls are made as raw ioctls, because the library would not make them. After each case an
//! ordinary job must still get a right answer. The calls and the jobs are two tables.

mod calls;
mod jobs;
mod requests;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use hmm::spec::uapi::{Call, Migrate, Submit, Wait};
use hmm::spec::wire::operation as op;
use hmm::{page_size, work, Device, Element, Space, Status};
use hmm_tool::runner::WorkloadCtx;
use rustix::io::Errno;
use rustix::process::{waitpid, WaitOptions};
use zerocopy::IntoBytes;

use crate::sys::{self, Staircase};
use calls::{BadCall, Buffers};
use requests::{complete, descriptor, migrate, raw, submit, wait, KERNEL, UNMAPPED};

/// Runs all cases.
pub(crate) fn run(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    ctx.report.size = 0;
    let stairs = Staircase::new(page_size()).context("mapping pages of several rights")?;
    all_calls(ctx, &stairs)?;
    unreadable_arguments(ctx, &stairs)?;
    pages_without_a_mapping(ctx)?;
    all_jobs(ctx, &stairs)?;
    fork_of_the_process(ctx, &stairs)?;
    close_with_a_job_in_flight(ctx)
}

/// Counts a case, and checks that the next job works.
fn next_job_works(ctx: &mut WorkloadCtx<'_>, case: &str) -> Result<()> {
    ctx.report.size += 1;
    let numbers: Vec<u64> = (0..1000).map(|_| u64::from(ctx.random.u32(..))).collect();
    let sum = ctx
        .on_device(work::sum(&numbers))
        .with_context(|| format!("an ordinary job after \"{case}\""))?;
    ctx.check_equal("sum of an ordinary job", sum, numbers.iter().sum());
    Ok(())
}

/// Calls with wrong arguments, before and after the process is bound.
fn all_calls(ctx: &mut WorkloadCtx<'_>, stairs: &Staircase) -> Result<()> {
    let here = stairs.writable() as u64;
    let file = ctx.space.device().as_fd();
    let nothing = descriptor(op::Sum {
        source: here,
        count: 0,
        element: Element::U64,
    });
    let (fetched, _) = complete(file, &nothing)?;
    let mut buffers = Buffers::new(fetched);
    let unbound = Device::open(ctx.path)?;
    let calls = calls::before_bind(&buffers, here);
    refused(ctx, unbound.as_fd(), &calls)?;
    let calls = calls::bound(&mut buffers, here, file.as_raw_fd());
    refused(ctx, file, &calls)
}

/// Checks that each of the calls is refused, and with which error.
fn refused(ctx: &mut WorkloadCtx<'_>, file: BorrowedFd<'_>, calls: &[BadCall]) -> Result<()> {
    for call in calls {
        ctx.check_equal(call.case, call.make(file), Err(call.error));
        next_job_works(ctx, call.case)?;
    }
    Ok(())
}

/// Calls whose arguments cannot be read.
fn unreadable_arguments(ctx: &mut WorkloadCtx<'_>, stairs: &Staircase) -> Result<()> {
    let file = ctx.space.device().as_fd();
    for code in calls::CODES {
        for address in [UNMAPPED, stairs.inaccessible() as u64, KERNEL] {
            let address = usize::try_from(address)?;
            // SAFETY: the structure cannot be read, so there is no call to carry out.
            let answer = unsafe { sys::raw_ioctl(file, code, address) };
            ctx.check_equal("a structure that is not there", answer, Err(Errno::FAULT));
        }
    }
    Ok(())
}

/// An address without a mapping has nothing to move, which is no error.
fn pages_without_a_mapping(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let case = "pages that are not mapped";
    let file = ctx.space.device().as_fd();
    let mut argument = migrate(UNMAPPED, page_size() as u64);
    let answer = raw(file, Migrate::CODE, argument.as_mut_bytes());
    let pages = answer.map(|()| (argument.moved, argument.skipped));
    ctx.check_equal(case, pages, Ok((0, 1)));
    next_job_works(ctx, case)
}

/// Jobs that cannot succeed.
fn all_jobs(ctx: &mut WorkloadCtx<'_>, stairs: &Staircase) -> Result<()> {
    let file = ctx.space.device().as_fd();
    for (case, job, end) in jobs::bad_jobs(stairs) {
        let (_, reply) = complete(file, &job).with_context(|| case.to_owned())?;
        ctx.check(end.fits(&reply), || {
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
        next_job_works(ctx, case)?;
    }
    ctx.check(stairs.is_untouched(), || {
        "a job has written to read-only memory".into()
    });
    Ok(())
}

/// A child of this process has the file, but not the addresses.
fn fork_of_the_process(ctx: &mut WorkloadCtx<'_>, stairs: &Staircase) -> Result<()> {
    let file = ctx.space.device().as_fd();
    let source = stairs.writable() as u64;
    let job = descriptor(op::Sum {
        source,
        count: 1,
        element: Element::U64,
    });
    let mut argument = submit(&job);
    let in_the_child =
        || u8::from(raw(file, Submit::CODE, argument.as_mut_bytes()) != Err(Errno::PERM));
    // SAFETY: the child makes one system call.
    let child = unsafe { sys::fork(in_the_child) }.context("forking")?;
    let ended = waitpid(Some(child), WaitOptions::empty()).context("waiting for the child")?;
    let status = ended.and_then(|(_, status)| status.exit_status());
    ctx.check_equal(
        "a job of a forked child is refused (0) or not (1)",
        status,
        Some(0),
    );
    next_job_works(ctx, "a job of a forked child")
}

/// Closing the file ends its jobs in flight; nothing is written afterwards.
fn close_with_a_job_in_flight(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let device = ctx.space.device();
    let before = device.counters()?;
    let counter = Box::new(AtomicU64::new(0));
    let other = Device::open(ctx.path)?.bind()?;
    start_endless(&other, &counter)?;
    while counter.load(Ordering::Relaxed) == 0 {
        std::thread::yield_now();
    }
    drop(other);
    let at_close = counter.load(Ordering::Relaxed);
    next_job_works(ctx, "a file closed with a job in flight")?;
    let later = counter.load(Ordering::Relaxed);
    ctx.check_equal("additions after the file was closed", later - at_close, 0);
    let after = device.counters()?;
    let spaces = after.device.spaces.get();
    ctx.check_equal("spaces on the device", spaces, before.device.spaces.get());
    let jobs = after.device.jobs.get();
    ctx.check_equal("jobs on the device", jobs, before.device.jobs.get());
    Ok(())
}

/// Submits a job that does not end by itself, and checks that a wait for it times out.
fn start_endless(space: &Space, counter: &AtomicU64) -> Result<()> {
    let endless = op::AtomicAdd {
        address: counter.as_ptr().expose_provenance() as u64,
        element: Element::U64,
        operand: 1,
        repeat: u64::MAX,
    };
    // SAFETY: the counter outlives the space, whose end ends the job, and all other users access it
    // atomically.
    let job = unsafe { space.submit(endless) }?;
    let mut look = Wait {
        deadline: 0,
        ..wait(job.fence())
    };
    // The test closes the file without waiting for the job's end.
    std::mem::forget(job);
    match raw(space.device().as_fd(), Wait::CODE, look.as_mut_bytes()) {
        Err(Errno::TIME) => Ok(()),
        other => anyhow::bail!("looking for a job that runs gave {other:?}"),
    }
}
