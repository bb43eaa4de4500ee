//! Engines: threads that run jobs in turns.
//!
//! A turn is a number of steps, about a millisecond's worth. Each step holds the space's read lock
//! and releases it, so that an invalidation waits for one step at most. Jobs take turns in the
//! order in which they became runnable.
//!
//! Lock order: a space's lock, then the engine's TLB. Neither is held between steps.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hmm_timeline::device::Event;
use parking_lot::{Mutex, RwLock};
use virtio_hmm_spec::points::Point;

use super::check::Check;
use super::job::{End, Job};
use super::memory::{DeviceMemory, SystemMemory};
use super::operations::Step;
use super::schedule::{News, Schedule, Turn, TurnEnd};
use super::statistics::{Counters, Tally};
use super::tlb::Tlb;
use super::view::View;
use crate::lateness::{About, Lateness};
use crate::trace;

/// How long a job may keep an engine while other jobs wait. {dev-job-turns}
const TURN: Duration = Duration::from_millis(1);

/// How long an engine runs before it yields its processor to waiting threads: a vCPU of the guest,
/// or a thread that answers it. These finish soon, but the host's scheduler would let them wait for
/// milliseconds. If no thread waits, yielding costs less than a hundredth.
const SHARE: Duration = Duration::from_micros(100);

/// The resources of an engine.
#[derive(Debug)]
pub struct Engine {
    /// The schedule that supplies jobs.
    pub schedule: Arc<Schedule>,
    /// The engine's own TLB. Other threads lock it only to audit it, or to change the guest's
    /// memory.
    pub tlb: Arc<Mutex<Tlb>>,
    /// Device memory.
    pub device: Arc<DeviceMemory>,
    /// The guest's memory.
    pub system: Arc<RwLock<Arc<SystemMemory>>>,
    /// The checking mode, if on.
    pub check: Option<Arc<Check>>,
    /// The counters of work done.
    pub counters: Arc<Counters>,
    /// The rules for deliberate delays.
    pub lateness: Arc<Lateness>,
}

impl Engine {
    /// Runs jobs until the schedule ends the engine. `tell` is called without any lock held.
    pub fn run(&self, tell: impl Fn(News)) {
        while let Some(mut turn) = self.schedule.next() {
            // A panic in an operation is a bug of the device: its job ends, the engine continues.
            // The operation's unfinished state is dropped with the job, and its locks do not
            // poison. {dev-job-ends}, {dev-catch-all}
            let begun = trace::begin();
            let end = catch_unwind(AssertUnwindSafe(|| self.turn(&mut turn)));
            let end = end.unwrap_or_else(|_| {
                log::error!("job {} ended by a bug in its operation", turn.job.id);
                TurnEnd::Ended(End::Broken)
            });
            trace::since(begun, Some(turn.job.space.id()), || Event::Turn {
                job: turn.job.id,
                stop: end.word().into(),
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
            if self.lateness.concerns(Point::EngineStep) {
                self.be_late(turn);
            }
            let now = Instant::now();
            if now - started >= TURN {
                break TurnEnd::Paused;
            }
            if now - shared >= SHARE {
                // Between steps an engine holds no lock.
                std::thread::yield_now();
                shared = now;
            }
        };
        self.account(&mut turn.job, started.elapsed(), &tally);
        end
    }

    /// Delays with no lock held; the delay ends if the job is cancelled. {dev-late-step}
    fn be_late(&self, turn: &Turn) {
        let about = About {
            space: Some(turn.job.space.id()),
            operation: None,
        };
        let cancelled = || turn.cancel.load(Ordering::Acquire);
        self.lateness.pass(Point::EngineStep, about, cancelled);
    }

    /// One step; `None` if the job can continue at once. {dev-job-space},
    /// {dev-control-not-behind-job}
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

/// A duration in nanoseconds, limited to 64 bits: 584 years.
pub fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
