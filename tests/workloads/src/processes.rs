//! Several processes and threads at once, one of which is killed.
//!
//! The processes run this program. One, the victim, runs a job that does not end by itself; it is
//! killed while the job runs. The others must get right answers, and the device must forget the
//! dead one.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{ensure, Context, Result};
use fastrand::Rng;
use hmm::{page_size, work, Counters, Destination, Device, PageRange, Space};
use hmm_tool::memory::{write_pattern, Mapping};
use hmm_tool::runner::WorkloadCtx;

use crate::args::{Part, Worker};
use crate::endless::{run_endless_job, RUNNING, TIMEOUT};
use crate::reaper;
use crate::survivors;

/// Threads that share this process's space.
const THREADS: u64 = 3;

/// Rounds of work that each thread and process does.
const ROUNDS: usize = 8;

/// Integers in each round.
const COUNT: usize = 1 << 16;

/// Memory that the victim keeps on the device.
const VICTIM_BYTES: usize = 8 << 20;

/// Starts all processes, kills one, and waits for the others.
pub(crate) fn run(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let before = ctx.space.device().counters()?;
    let start = Instant::now();
    let mut victim = Worker {
        part: Part::Victim,
        seed: ctx.random.u64(..),
        memory: 0,
    }
    .spawn(ctx.path)?;
    // The victim is one of them.
    let peers: Vec<_> = (1..ctx.size())
        .map(|_| {
            Worker {
                part: Part::Peer,
                seed: ctx.random.u64(..),
                memory: 0,
            }
            .spawn(ctx.path)
        })
        .collect::<Result<_>>()?;

    let seeds: Vec<_> = (0..THREADS).map(|_| ctx.random.u64(..)).collect();
    let space = ctx.space;
    let (killed, answers) = thread::scope(|scope| {
        let threads: Vec<_> = seeds
            .into_iter()
            .map(|seed| scope.spawn(move || rounds(space, seed)))
            .collect();
        let killed = kill_in_the_middle(&mut victim);
        let answers: Vec<_> = threads
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect();
        (killed, answers)
    });
    for answer in answers {
        let wrong = answer.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        ctx.check_equal("wrong answers in a thread", wrong, 0);
    }
    ctx.check_equal("signal that ended the victim", killed?, Some(9));
    for mut peer in peers {
        let status = peer.wait().context("waiting for a process")?;
        ctx.check(status.success(), || {
            format!("a process ended with {status}")
        });
    }
    ctx.add_device_time(start.elapsed());

    let device = ctx.space.device();
    let held = |counters: &Counters| {
        let (driver, device) = (&counters.driver, &counters.device);
        (
            driver.spaces,
            driver.used_frames,
            device.spaces.get(),
            device.jobs.get(),
        )
    };
    let deadline = Instant::now() + TIMEOUT;
    let mut now = device.counters()?;
    // The kernel may free the last of a dead process's memory a little after its death, without an
    // event. If the CPU uses device memory in place, pages are also left that this process has
    // freed, but not returned to the kernel.
    // With page tables of four levels, no process has the last page below 2^47.
    let own = PageRange::around(page_size()..(1 << 47) - page_size());
    while held(&now) != held(&before) && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
        ctx.space.migrate(own, Destination::System)?;
        now = device.counters()?;
    }
    ctx.check_equal(
        "spaces, frames, spaces on the device and jobs that are left",
        held(&now),
        held(&before),
    );
    ctx.report.note = format!("and {THREADS} threads; one process killed in the middle of a job");
    Ok(())
}

/// Kills the victim when its job runs. Returns the signal that ended it.
fn kill_in_the_middle(victim: &mut Child) -> Result<Option<i32>> {
    let output = victim.stdout.take().context("the victim has no output")?;
    let mut line = String::new();
    BufReader::new(output)
        .read_line(&mut line)
        .context("listening to the victim")?;
    victim.kill().context("killing the victim")?;
    let status = victim.wait().context("waiting for the victim")?;
    ensure!(
        line.trim_end() == RUNNING,
        "the victim's job never ran: {status}"
    );
    Ok(status.signal())
}

impl Worker {
    fn spawn(self, device: &Path) -> Result<Child> {
        let part = if self.part == Part::Peer {
            "peer"
        } else {
            "victim"
        };
        Command::new("/proc/self/exe")
            .arg("--device")
            .arg(device)
            .args(["worker", part, "--seed", &self.seed.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting another process")
    }
}

/// The part of one process. Returns whether all its answers were right.
pub(crate) fn work(device: &Path, worker: Worker) -> Result<bool> {
    let bind = || Device::open(device)?.bind();
    match worker.part {
        Part::Peer => Ok(rounds(&bind()?, worker.seed)? == 0),
        Part::Victim => run_until_killed(&bind()?, worker.seed),
        Part::Survivor => survivors::survive(&bind()?, worker.seed),
        Part::Sleeper => survivors::sleep(&bind()?, worker.seed, worker.memory),
        Part::Changer => survivors::change(&bind()?, worker.seed),
        Part::Waiter => survivors::wait(&bind()?, worker.seed),
        Part::Caller => survivors::call(&bind()?),
        Part::Leaver => survivors::leave(bind()?, device, worker.seed),
        Part::Poller => survivors::poll_for_errors(&bind()?),
        Part::Faulter => survivors::fault_until_removed(&bind()?, worker.seed),
        // It must have one thread, and binds another process.
        Part::Reaper => reaper::reap(device),
    }
}

/// Works and checks. Returns how many answers were wrong.
fn rounds(space: &Space, seed: u64) -> Result<usize> {
    let mut random = Rng::with_seed(seed);
    let mut wrong = 0;
    for round in 0..ROUNDS {
        let mut data: Vec<u64> = (0..COUNT).map(|_| random.u64(..)).collect();
        let mut scratch = vec![0; COUNT];
        let mut expected = data.clone();
        expected.sort_unstable();
        let sum = data
            .iter()
            .fold(0, |sum: u64, number| sum.wrapping_add(*number));
        if round % 2 == 1 {
            space.migrate(PageRange::covering(&data), Destination::Device)?;
        }
        let max = space.scope(|scope| -> Result<_> {
            let first = scope.submit(work::sum(&data))?;
            let second = scope.submit(work::max(&data))?;
            wrong += usize::from(first.wait()?.value != sum);
            Ok(second.wait()?.value.map(|extreme| extreme.value))
        })?;
        wrong += usize::from(max != expected.last().copied());
        space.run(work::sort(&mut data, &mut scratch))?;
        wrong += usize::from(data != expected);
    }
    Ok(wrong)
}

/// Keeps pages on the device and a job in flight. Only a failure makes it return.
fn run_until_killed(space: &Space, seed: u64) -> Result<bool> {
    let mut memory = Mapping::anonymous(VICTIM_BYTES)?;
    write_pattern(seed, memory.numbers_mut());
    space.migrate(memory.pages(), Destination::Device)?;
    run_endless_job(space)?;
    Ok(false)
}
