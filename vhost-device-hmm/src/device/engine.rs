//! Engines: threads that run jobs in turns.
//!
//! A turn is a number of steps, about a millisecond's worth; each step holds the
//! space's read lock and lets go of it, so that an invalidation waits for one step at
//! most. Jobs take turns in the order in which they became runnable.
//!
//! Lock order: a space's lock, then the engine's TLB. Neither is held between steps.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Mutex, RwLock};

use super::check::Check;
use super::job::{End, Job};
use super::memory::{DeviceMemory, SystemMemory};
use super::operations::Step;
use super::schedule::{News, Schedule, Turn, TurnEnd};
use super::statistics::{Counters, Tally};
use super::tlb::Tlb;
use super::view::View;

/// How long a job may have an engine while others wait.
const TURN: Duration = Duration::from_millis(1);

/// How long an engine runs before it lets others have its processor, if any wait: a guest's
/// processor, or a thread that answers it. They are done soon, and the scheduler of the host
/// would let them wait for milliseconds. Where nobody waits, that costs less than a hundredth.
const SHARE: Duration = Duration::from_micros(100);

/// What an engine works with.
#[derive(Debug)]
pub struct Engine {
    /// Where jobs come from.
    pub schedule: Arc<Schedule>,
    /// The engine's own TLB; others lock it only to audit it.
    pub tlb: Arc<Mutex<Tlb>>,
    /// Device memory.
    pub device: Arc<DeviceMemory>,
    /// The guest's memory.
    pub system: Arc<RwLock<Arc<SystemMemory>>>,
    /// The checking mode, if on.
    pub check: Option<Arc<Check>>,
    /// Where work is counted.
    pub counters: Arc<Counters>,
}

impl Engine {
    /// Runs jobs until the schedule says that there will be none any more. `tell` is
    /// called without any lock held.
    pub fn run(&self, tell: impl Fn(News)) {
        while let Some(mut turn) = self.schedule.next() {
            // An operation that panics is our own mistake: its job ends, the engine
            // lives on. What the operation has left half done dies with the job, and
            // the locks that it held do not poison.
            let end = catch_unwind(AssertUnwindSafe(|| self.turn(&mut turn)));
            let end = end.unwrap_or_else(|_| {
                log::error!("job {} ended by a bug in its operation", turn.job.id);
                TurnEnd::Ended(End::Broken)
            });
            tell(self.schedule.put_back(turn, end));
        }
    }

    fn turn(&self, turn: &mut Turn) -> TurnEnd {
        let started = Instant::now();
        let mut shared = started;
        let mut tally = Tally::default();
        let end = loop {
            if turn.cancel.load(Ordering::Acquire) {
                break TurnEnd::Ended(End::Cancelled);
            }
            if let Some(end) = self.step(&mut turn.job, &mut tally) {
                break end;
            }
            turn.job.progressed();
            let now = Instant::now();
            if now - started >= TURN {
                break TurnEnd::Paused;
            }
            if now - shared >= SHARE {
                // Between steps an engine holds nothing that anybody waits for.
                std::thread::yield_now();
                shared = now;
            }
        };
        self.account(&mut turn.job, started.elapsed(), &tally);
        end
    }

    /// One step; `None` when the job can go on at once.
    fn step(&self, job: &mut Job, tally: &mut Tally) -> Option<TurnEnd> {
        let space = Arc::clone(&job.space);
        let mappings = space.read();
        let mut tlb = self.tlb.lock();
        tlb.follow(&self.system.read());
        let check = self.check.as_deref();
        let mut view = View::new(space.id(), &mappings, &mut tlb, &self.device, check, tally);
        match job.work.step(&mut view) {
            Ok(Step::More) => None,
            Ok(Step::Done(status, values)) => Some(TurnEnd::Ended(End::Finished(status, values))),
            Err(fault) => Some(TurnEnd::Stopped(fault, view.expected_pages(&fault))),
        }
    }

    fn account(&self, job: &mut Job, time: Duration, tally: &Tally) {
        job.engine_time += time;
        job.tally.add(tally);
        let counters = &self.counters;
        counters.engine_nanoseconds.add(nanoseconds(time));
        counters.system_bytes.add(tally.system_bytes);
        counters.device_bytes.add(tally.device_bytes);
        counters.tlb_hits.add(tally.hits);
        counters.tlb_misses.add(tally.misses);
    }
}

/// A duration in nanoseconds, as far as 64 bits go: 584 years.
pub fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
