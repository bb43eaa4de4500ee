//! Processes that outlive a failure or a restart of the device.
//!
//! Each has some memory on the device and some that never was there, and runs a job when the device
//! is given up, or when the system goes to sleep. Then it checks the job and its memory, and works
//! on. It does not know why the device fails.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use anyhow::{anyhow, bail, ensure, Context, Result};
use hmm::spec::uapi::{Call, Info};
use hmm::spec::wire::command::Status;
use hmm::spec::wire::fault::Reason;
use hmm::spec::wire::operation as op;
use hmm::{work, Destination, Device, Element, Error, JobFailure, Place, Space};
use hmm_cli::say;
use hmm_tool::memory::{first_difference, write_pattern, Mapping};
use hmm_tool::places::{self, at};
use rustix::event::{epoll, poll, PollFd, PollFlags, Timespec};
use serde_json::{json, Value};

use crate::arena::{Arena, Slot};
use crate::endless::{report_running, run_endless_job, TIMEOUT};
use crate::sys::{raw_ioctl, Withheld};

/// The memory on the device; as much again is not there.
const BYTES: usize = 4 << 20;

/// One huge page.
const HUGE_BYTES: usize = 2 << 20;

/// Too little for a huge page.
const FEW_BYTES: usize = 256 << 10;

/// The error of calls.
const EIO: i32 = 5;
const EAGAIN: i32 = 11;

/// Memory with a pattern.
struct Patterned {
    memory: Mapping,
    seed: u64,
}

impl Patterned {
    fn new(seed: u64) -> Result<Self> {
        Self::of(BYTES, seed)
    }

    fn of(bytes: usize, seed: u64) -> Result<Self> {
        let mut memory = Mapping::large(bytes)?;
        write_pattern(seed, memory.numbers_mut());
        Ok(Self { memory, seed })
    }

    /// Checks that a job gets the result that the pattern gives.
    fn check(&self, space: &Space) -> Result<()> {
        let numbers: &[u64] = self.memory.numbers();
        let sum = space.run(work::sum(numbers))?.value;
        ensure!(
            sum == places::sum(self.seed, numbers.len()),
            "the sum of {} numbers is wrong",
            numbers.len()
        );
        Ok(())
    }

    /// Moves all of it to the device. The kernel may hold a page for a moment.
    fn move_out(&self, space: &Space) -> Result<()> {
        let pages = self.memory.pages();
        let deadline = Instant::now() + TIMEOUT;
        loop {
            let migration = space.migrate(pages, Destination::Device)?;
            let states = space.residency(pages)?;
            if at(Place::Device, &states) == states.len() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "not all could be moved: {migration:?}"
            );
        }
    }

    /// Whether the CPU finds every number unchanged.
    fn is_whole(&self) -> bool {
        first_difference(self.seed, self.memory.numbers()).is_none()
    }

    /// Whether the memory is lost for the CPU. The kernel reads it for this program, so that the
    /// program is not killed by poison.
    fn is_lost(&self) -> Result<bool> {
        let (_reader, writer) = rustix::pipe::pipe().context("making a pipe")?;
        let numbers: &[u64] = self.memory.numbers();
        let bytes = zerocopy::IntoBytes::as_bytes(&numbers[..64]);
        let written = rustix::io::write(writer, bytes);
        Ok(written.is_err_and(|errno| errno == rustix::io::Errno::FAULT))
    }
}

/// Tells when the state of a device changes.
struct Changes(OwnedFd);

impl Changes {
    /// Watches from now on; the first wait ends at once.
    fn of(file: impl AsFd) -> Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).context("making an epoll set")?;
        let data = epoll::EventData::new_u64(0);
        epoll::add(&set, file, data, epoll::EventFlags::ET).context("polling the device")?;
        Ok(Self(set))
    }

    fn wait(&self) -> Result<()> {
        let mut events = Vec::with_capacity(1);
        let timeout = Timespec::try_from(TIMEOUT).context("a timeout")?;
        let spare = rustix::buffer::spare_capacity(&mut events);
        let count = epoll::wait(&self.0, spare, Some(&timeout)).context("polling the device")?;
        ensure!(count == 1, "nothing changes");
        Ok(())
    }
}

fn errno<T>(result: &Result<T, Error>) -> Option<i32> {
    result.as_ref().err().and_then(Error::errno)
}

/// Binds again after the device was restarted.
fn bind_again(space: &Space) -> Result<()> {
    let changes = Changes::of(space)?;
    loop {
        let bound = space.bind_again();
        if errno(&bound) != Some(EAGAIN) {
            return Ok(bound?);
        }
        changes.wait().context("the device is not started anew")?;
    }
}

/// Works until the device is given up, and afterwards.
pub(crate) fn survive(space: &Space, seed: u64) -> Result<bool> {
    let (gone, kept) = (Patterned::new(seed)?, Patterned::new(!seed)?);
    kept.check(space)?;
    gone.move_out(space)?;
    gone.check(space)?;
    let ended = run_endless_job(space);
    ensure!(errno(&ended) == Some(EIO), "the job ended with {ended:?}");

    // The space is unusable until the process asks for a new one.
    let moved = space.migrate(kept.memory.pages(), Destination::Device);
    ensure!(errno(&moved) == Some(EIO), "{moved:?} of what is not there");
    bind_again(space)?;
    ensure!(kept.is_whole(), "what was not on the device is as it was");
    kept.check(space)?;
    let lost = space.run(work::sum::<u64>(gone.memory.numbers()));
    // The pages that could be isolated from the CPUs are poisoned now, which the kernel does not
    // distinguish from memory without access.
    let is_refused = |failure: &JobFailure| {
        let reasons = [Some(Reason::Poisoned), Some(Reason::Denied)];
        failure.status == Status::Fault && reasons.contains(&failure.reason)
    };
    ensure!(
        matches!(&lost, Err(Error::Job(failure)) if is_refused(failure)),
        "a job on what is lost ended with {lost:?}"
    );
    ensure!(gone.is_lost()?, "what was on the device is there again");
    // A lost page does not hinder others.
    kept.move_out(space)?;
    kept.check(space)?;
    ensure!(kept.is_whole(), "what came back is as it was");
    Ok(true)
}

/// Works until the system sleeps, and afterwards.
pub(crate) fn sleep(space: &Space, seed: u64, bytes: usize) -> Result<bool> {
    let (large, small) = (Patterned::of(bytes, seed)?, Patterned::of(FEW_BYTES, seed)?);
    let other = Patterned::of(bytes, !seed)?;
    for on_device in [&large, &small] {
        on_device.move_out(space)?;
        on_device.check(space)?;
    }
    other.check(space)?;
    let ended = run_endless_job(space);
    ensure!(is_cancelled(&ended), "the job ended with {ended:?}");

    // The space is the same as before.
    for memory in [&large, &small, &other] {
        memory.check(space)?;
        ensure!(memory.is_whole(), "nothing is lost");
    }
    for on_device in [&large, &small] {
        on_device.move_out(space)?;
        on_device.check(space)?;
        ensure!(on_device.is_whole(), "nothing is lost later");
    }
    Ok(true)
}

/// How often the system sleeps while a process changes its memory.
const SLEEPS: u64 = 10;

/// The size of that memory; the driver changes 2 MiB at a time.
const CHANGED: usize = 64 << 20;

/// Has the driver change memory that the device has mapped until the system sleeps, again and
/// again. Afterwards the device must be told of each change.
pub(crate) fn change(space: &Space, seed: u64) -> Result<bool> {
    let (changed, mut looked_at) = (small_pages(CHANGED)?, small_pages(BYTES)?);
    for round in 0..SLEEPS {
        // First mapped as zero pages: each is replaced by a page of its own before the device may
        // write there.
        let zeros = sum_by_job(space, &changed, CHANGED as u64 / 8)?;
        ensure!(round > 0 || zeros == 0, "new memory is zeros: {zeros}");
        let fill = op::Fill {
            destination: changed.address(Slot::Home),
            bytes: CHANGED as u64,
            pattern: seed,
        };
        // SAFETY: The job writes to memory that stays mapped until it has ended, which is waited
        // for here, and that nothing else uses meanwhile.
        let job = unsafe { space.submit(fill) }?;
        report_running();
        let ended = job.wait().map(drop);
        ensure!(is_cancelled(&ended), "the job ended with {ended:?}");
        for value in [seed + round, !seed - round] {
            looked_at.discard().context("discarding memory")?;
            looked_at.fill(1, value);
            let read = sum_by_job(space, &looked_at, 1)?;
            ensure!(read == value, "the device reads what is gone: {read:#x}");
        }
    }
    Ok(true)
}

/// New memory, of small pages.
fn small_pages(bytes: usize) -> Result<Arena> {
    let mut arena = Arena::reserve(bytes).context("reserving memory")?;
    arena.renew(false).context("mapping memory")?;
    Ok(arena)
}

/// The sum of the first words of an arena, as a job reads them.
fn sum_by_job(space: &Space, arena: &Arena, count: u64) -> Result<u64> {
    let sum = op::Sum {
        source: arena.address(Slot::Home),
        count,
        element: Element::U64,
    };
    // SAFETY: The job reads memory that stays mapped until it has ended, which is waited for here,
    // and that nothing else writes meanwhile.
    let job = unsafe { space.submit(sum) }?;
    Ok(job.wait()?.value[0])
}

/// Whether a job ended because it was cancelled.
fn is_cancelled(ended: &Result<(), Error>) -> bool {
    matches!(ended, Err(Error::Job(failure)) if failure.status == Status::Cancelled)
}

/// Runs a job on a page that never comes, until the job is ended. Another process keeps the page
/// from coming even if this one is killed.
pub(crate) fn wait(space: &Space, seed: u64) -> Result<bool> {
    let gone = Patterned::new(seed)?;
    gone.move_out(space)?;
    let withheld = Withheld::new(BYTES)?;
    Command::new("sleep")
        .arg("1000")
        .stdout(Stdio::null())
        .spawn()
        .context("starting another process")?;
    let numbers = zerocopy::FromBytes::ref_from_bytes(withheld.bytes());
    let numbers: &[u64] = numbers.unwrap_or_default();
    let ended = space.scope(|scope| -> Result<_> {
        let job = scope.submit(work::sum(numbers))?;
        withheld.wait_for_fault()?;
        report_running();
        Ok(job.wait().map(drop))
    })?;
    ensure!(ended.is_err(), "a sum of what is not there");
    ensure!(gone.is_whole(), "nothing is lost");
    Ok(true)
}

/// Makes a call whose argument lies in a page that never comes, until killed.
pub(crate) fn call(space: &Space) -> Result<bool> {
    let withheld = Withheld::new(BYTES)?;
    let address = withheld.bytes().as_ptr().expose_provenance();
    thread::scope(|scope| {
        // SAFETY: the call writes to memory that has no other user.
        let calling =
            scope.spawn(|| unsafe { raw_ioctl(space.device().as_fd(), Info::CODE, address) });
        withheld.wait_for_fault()?;
        report_running();
        match calling.join() {
            Ok(ended) => bail!("the call ended with {ended:?}"),
            Err(_) => bail!("a thread panicked"),
        }
    })
}

/// Polls for errors only, and waits for a job, until the device fails or is removed. Prints the
/// bits that the poll returned, how the job ended, and the error of a later call.
pub(crate) fn poll_for_errors(space: &Space) -> Result<bool> {
    let trouble = |limit: Option<&Timespec>| -> Result<u16> {
        let mut files = [PollFd::new(space, PollFlags::empty())];
        poll(&mut files, limit).context("polling")?;
        Ok(files[0].revents().bits())
    };
    let (told, ended) = thread::scope(|scope| -> Result<_> {
        let polling = scope.spawn(|| trouble(None));
        while !is_in_poll()? {
            thread::yield_now();
        }
        let ended = run_endless_job(space);
        let told = polling.join().map_err(|_| anyhow!("a thread panicked"))?;
        Ok((told?, ended))
    })?;
    let memory = Mapping::anonymous(BYTES)?;
    let later = space.migrate(memory.pages(), Destination::Device);
    let call = errno(&later);
    let job = job_result(&ended);
    say!("{}", json!({ "poll": told, "job": job, "call": call }));
    if call == Some(EIO) {
        bind_again(space)?;
        ensure!(trouble(Some(&Timespec::default()))? == 0, "all is well");
    }
    Ok(true)
}

/// Runs a job on a page that a CPU takes back all the time, while another thread touches a huge
/// page on the device. Prints the job's status.
pub(crate) fn fault_until_removed(space: &Space, seed: u64) -> Result<bool> {
    let far = Patterned::of(HUGE_BYTES, seed)?;
    far.move_out(space)?;
    let (counter, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let count = || counter.load(Ordering::Relaxed);
    let (ended, is_whole) = thread::scope(|scope| -> Result<_> {
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                count();
                thread::yield_now();
            }
        });
        let ended = space.scope(|work| -> Result<_> {
            let endless = work.submit(work::atomic_add(&counter, 1, u64::MAX))?;
            while count() == 0 {
                thread::yield_now();
            }
            let touching = scope.spawn(|| far.is_whole());
            report_running();
            Ok((endless.wait().map(drop), touching))
        });
        is_over.store(true, Ordering::Relaxed);
        let (ended, touching) = ended?;
        let is_whole = touching.join().map_err(|_| anyhow!("a thread panicked"))?;
        Ok((ended, is_whole))
    })?;
    say!("{}", json!({ "job": job_result(&ended) }));
    Ok(is_whole)
}

/// The status of a job that has ended, or the error of the wait.
fn job_result(ended: &Result<(), Error>) -> Value {
    match ended {
        Err(Error::Job(failure)) => json!(failure.status.name()),
        ended => json!(errno(ended)),
    }
}

/// Whether a thread of this process is in a poll.
fn is_in_poll() -> Result<bool> {
    let calls = [libc::SYS_poll, libc::SYS_ppoll].map(|number| format!("{number} "));
    for task in std::fs::read_dir("/proc/self/task").context("looking for threads")? {
        let path = task.context("looking for threads")?.path().join("syscall");
        let call = std::fs::read_to_string(path).context("looking at a thread")?;
        if calls.iter().any(|number| call.starts_with(number)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Closes the device with pages on it, and checks them after the device is gone.
pub(crate) fn leave(space: Space, device: &Path, seed: u64) -> Result<bool> {
    let left = Patterned::new(seed)?;
    left.move_out(&space)?;
    // A file that is not bound.
    let unbound = Device::open(device)?;
    drop(space);
    report_running();
    let mut files = [PollFd::new(&unbound, PollFlags::empty())];
    let timeout = Timespec::try_from(TIMEOUT).context("a timeout")?;
    poll(&mut files, Some(&timeout)).context("polling the device")?;
    let state = files[0].revents();
    ensure!(
        state.contains(PollFlags::HUP) && !device.exists(),
        "the device stays: {state:?}"
    );
    ensure!(left.is_whole(), "nothing is lost");
    Ok(true)
}
