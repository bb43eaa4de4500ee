//! Which job runs next, which jobs wait, and what to report when one ends.
//!
//! One lock protects all jobs. It is never held while a job runs, while a space is locked, or while
//! the listener is called.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use hmm_timeline::device::Event;
use parking_lot::{Condvar, Mutex, MutexGuard};
use virtio_hmm_spec::points::Point;
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::fault::{FaultRecord, Reason};

use super::fault::{FaultId, Faults};
use super::job::{End, Ended, Job};
use super::operations::Fault;
use super::snapshot::{FaultState, JobPlace, JobState};
use super::statistics::Counters;
use super::turns::Turns;
use crate::lateness::{About, Lateness};
use crate::trace;

/// Asks the engine that runs a job to stop.
pub type CancelFlag = Arc<AtomicBool>;

/// A job for an engine to run.
#[derive(Debug)]
pub struct Turn {
    /// The job.
    pub job: Box<Job>,
    /// Set when the job is to end at its next step.
    pub cancel: CancelFlag,
}

/// How a turn on an engine ended.
#[derive(Debug)]
pub enum TurnEnd {
    /// Its time slice is over.
    Paused,
    /// It needs a page, and will need that many in the same way.
    Stopped(Fault, u32),
    /// It has ended.
    Ended(End),
}

impl TurnEnd {
    /// A word for it in a trace.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::Stopped(..) => "fault",
            Self::Ended(_) => "ended",
        }
    }
}

/// What the listener has to collect after a change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "the outside waits for it"]
pub struct News {
    /// Jobs have ended.
    pub ended: bool,
    /// Faults wait to be reported.
    pub faults: bool,
}

/// All jobs that have not ended, and the ends that were not collected.
#[derive(Debug)]
pub struct Schedule {
    max_jobs: usize,
    counters: Arc<Counters>,
    lateness: Arc<Lateness>,
    jobs: Mutex<Jobs>,
    /// There is a job to run, or the engines must end.
    work: Condvar,
    /// An engine has put a job back.
    put_back: Condvar,
}

#[derive(Debug, Default)]
struct Jobs {
    places: HashMap<u64, Place>,
    runnable: Turns,
    /// Jobs that are delayed although their faults were answered.
    retried: VecDeque<Box<Job>>,
    faults: Faults,
    ended: Vec<Ended>,
    /// Names of jobs that were cancelled before they came, oldest first.
    cancelled_early: VecDeque<u64>,
    closed: bool,
    paused: bool,
    /// The control socket has paused the engines.
    held: bool,
    finished: bool,
}

/// Where a job is.
#[derive(Debug)]
enum Place {
    Runnable,
    Running {
        space: u32,
        cancel: CancelFlag,
    },
    Parked(FaultId),
    /// Its fault was answered, and a rule delays it.
    Retried(CancelFlag),
}

impl Schedule {
    /// An empty schedule for up to `max_jobs` jobs; it takes none until it is opened.
    pub fn new(max_jobs: u32, counters: Arc<Counters>, lateness: Arc<Lateness>) -> Self {
        Self {
            max_jobs: usize::try_from(max_jobs).unwrap_or(usize::MAX),
            counters,
            lateness,
            jobs: Mutex::new(Jobs {
                closed: true,
                ..Jobs::default()
            }),
            work: Condvar::new(),
            put_back: Condvar::new(),
        }
    }

    /// Takes jobs from now on.
    pub fn open(&self) {
        self.jobs.lock().closed = false;
    }

    /// Takes no more jobs.
    pub fn close(&self) {
        self.jobs.lock().closed = true;
    }

    /// Gives no job to an engine until [`Schedule::resume`], and waits until no engine has one.
    pub fn pause(&self) {
        self.lateness.stop(None);
        let mut jobs = self.jobs.lock();
        jobs.paused = true;
        let running = |jobs: &Jobs| {
            jobs.places
                .values()
                .any(|place| matches!(place, Place::Running { .. }))
        };
        while running(&jobs) {
            self.put_back.wait(&mut jobs);
        }
    }

    /// Gives jobs to engines again.
    pub fn resume(&self) {
        self.jobs.lock().paused = false;
        self.lateness.start(None);
        self.work.notify_all();
    }

    /// Keeps engines from taking jobs while `held` is set.
    pub fn set_held(&self, held: bool) {
        self.jobs.lock().held = held;
        self.work.notify_all();
    }

    /// All jobs and faults, and whether engines are paused by [`Schedule::set_held`].
    pub fn snapshot(&self) -> (Vec<JobState>, Vec<FaultState>, bool) {
        let state = self.jobs.lock();
        let mut faults = state.faults.snapshot();
        let state_of = |job: u64, space, place| JobState { job, space, place };
        let of_job = |job: &Job, place| state_of(job.id, job.space.id(), place);
        let runnable = state.runnable.iter();
        let retried = state.retried.iter();
        let parked = faults.iter();
        let mut jobs: Vec<JobState> = runnable
            .map(|job| of_job(job, JobPlace::Runnable))
            .chain(retried.map(|job| of_job(job, JobPlace::Retried)))
            .chain(parked.map(|fault| state_of(fault.job, fault.space, JobPlace::Parked)))
            .collect();
        jobs.extend(state.places.iter().filter_map(|(id, place)| match place {
            Place::Running { space, .. } => Some(state_of(*id, *space, JobPlace::Running)),
            Place::Runnable | Place::Parked(_) | Place::Retried(_) => None,
        }));
        let held = state.held;
        drop(state);
        jobs.sort_by_key(|job| job.job);
        faults.sort_by_key(|fault| fault.fault);
        (jobs, faults, held)
    }

    /// Ends the engines: [`Schedule::next`] returns `None` from now on.
    pub fn finish(&self) {
        let mut jobs = self.jobs.lock();
        jobs.closed = true;
        jobs.finished = true;
        self.work.notify_all();
    }

    /// Whether a job with this name may be submitted.
    ///
    /// # Errors
    ///
    /// [`Status::NotReady`], [`Status::Limit`] or [`Status::Exists`].
    pub fn admits(&self, id: u64) -> Result<(), Status> {
        self.jobs.lock().admits(id, self.max_jobs)
    }

    /// Puts a new job behind the others of its space.
    ///
    /// # Errors
    ///
    /// As [`Schedule::admits`], [`Status::NoSpace`] when its space was destroyed, and
    /// [`Status::Cancelled`] when it was cancelled before it came.
    pub fn insert(&self, job: Job) -> Result<(), Status> {
        let mut jobs = self.jobs.lock();
        jobs.admits(job.id, self.max_jobs)?;
        // Checked under the lock: a thread that destroys the space retires it first and then ends
        // its jobs, under this lock too.
        if !job.space.alive() {
            return Err(Status::NoSpace);
        }
        // {dev-cancel-early}
        if jobs.was_cancelled_early(job.id) {
            self.counters.jobs_ended.add(1);
            return Err(Status::Cancelled);
        }
        jobs.places.insert(job.id, Place::Runnable);
        jobs.runnable.push(Box::new(job));
        self.work.notify_one();
        Ok(())
    }

    /// Waits for a job to run; `None` if the engine has to end.
    pub fn next(&self) -> Option<Turn> {
        let mut jobs = self.jobs.lock();
        loop {
            if jobs.finished {
                return None;
            }
            let next = if jobs.paused || jobs.held {
                None
            } else {
                jobs.runnable.pop()
            };
            if let Some(job) = next {
                let cancel = CancelFlag::default();
                let place = Place::Running {
                    space: job.space.id(),
                    cancel: Arc::clone(&cancel),
                };
                jobs.places.insert(job.id, place);
                return Some(Turn { job, cancel });
            }
            self.work.wait(&mut jobs);
        }
    }

    /// Takes a job back from an engine.
    pub fn put_back(&self, turn: Turn, end: TurnEnd) -> News {
        let Turn { mut job, cancel } = turn;
        let mut jobs = self.jobs.lock();
        let cancelled = cancel.load(Ordering::Acquire);
        let mut news = News::default();
        match end {
            TurnEnd::Ended(end) => {
                jobs.end(job, end, &self.counters);
                news.ended = true;
            }
            _ if cancelled => {
                jobs.end(job, End::Cancelled, &self.counters);
                news.ended = true;
            }
            TurnEnd::Paused => {
                jobs.places.insert(job.id, Place::Runnable);
                jobs.runnable.push(job);
                if jobs.runnable.len() > 1 {
                    self.work.notify_one();
                }
            }
            TurnEnd::Stopped(fault, pages) => {
                self.counters.faults.add(1);
                if job.faulted(&fault) {
                    jobs.end(job, End::Stormed(fault), &self.counters);
                    news.ended = true;
                } else {
                    let id = job.id;
                    trace::moment(Some(job.space.id()), || Event::Fault {
                        job: id,
                        address: fault.address,
                        access: fault.access,
                    });
                    // {dev-park}, {dev-control-not-behind-fault}
                    let fault = jobs.faults.raise(job, fault, pages);
                    jobs.places.insert(id, Place::Parked(fault));
                    news.faults = true;
                }
            }
        }
        self.put_back.notify_all();
        news
    }

    /// The driver has mapped the page: the job continues. Returns whether the fault was waiting for
    /// an answer.
    pub fn retry(self: &Arc<Self>, fault: FaultId) -> bool {
        let mut jobs = self.jobs.lock();
        // {dev-late-answer}
        let Some(parked) = jobs.faults.answer(fault) else {
            self.counters.answers_late.add(1);
            return false;
        };
        self.counters.faults_retried.add(1);
        answered(&parked.job, true);
        if self.lateness.concerns(Point::FaultRetried) {
            self.retry_late(jobs, parked.job);
            return true;
        }
        // {dev-retry-looks-again}
        jobs.places.insert(parked.job.id, Place::Runnable);
        jobs.runnable.push(parked.job);
        self.work.notify_one();
        true
    }

    /// Makes a job runnable later, if a rule says so. No other thread waits for that: each delayed
    /// job has its own thread. {dev-late-retry}
    fn retry_late(self: &Arc<Self>, mut jobs: MutexGuard<'_, Jobs>, job: Box<Job>) {
        let (id, gone) = (job.id, CancelFlag::default());
        let about = About {
            space: Some(job.space.id()),
            operation: None,
        };
        jobs.places.insert(id, Place::Retried(Arc::clone(&gone)));
        jobs.retried.push_back(job);
        drop(jobs);
        let Some(wait) = self.lateness.arrive(Point::FaultRetried, about) else {
            return self.go_on(id, &gone);
        };
        let (this, flag) = (Arc::clone(self), Arc::clone(&gone));
        let thread = std::thread::Builder::new().name("retried".into());
        let started = thread.spawn(move || {
            this.lateness.wait(wait, || flag.load(Ordering::Acquire));
            this.go_on(id, &flag);
        });
        if let Err(error) = started {
            log::error!("cannot start a thread that is late instead of a job: {error}");
            self.lateness.forget(wait);
            self.go_on(id, &gone);
        }
    }

    /// Makes a delayed job runnable, unless it has ended meanwhile.
    fn go_on(&self, id: u64, gone: &CancelFlag) {
        let mut jobs = self.jobs.lock();
        // A thread that ends the job sets this under the lock; another job may have its name since.
        if gone.load(Ordering::Acquire) {
            return;
        }
        let index = jobs.retried.iter().position(|job| job.id == id);
        if let Some(job) = index.and_then(|index| jobs.retried.remove(index)) {
            jobs.places.insert(id, Place::Runnable);
            jobs.runnable.push(job);
            self.work.notify_one();
        }
    }

    /// The driver cannot provide a page: the job ends. {dev-terminate}
    pub fn terminate(&self, fault: FaultId, reason: Reason) -> News {
        let mut jobs = self.jobs.lock();
        let Some(parked) = jobs.faults.answer(fault) else {
            self.counters.answers_late.add(1);
            return News::default();
        };
        self.counters.faults_terminated.add(1);
        answered(&parked.job, false);
        jobs.end(
            parked.job,
            End::Faulted(parked.fault, reason),
            &self.counters,
        );
        News {
            ended: true,
            faults: false,
        }
    }

    /// Ends a job early; does not wait for the engine that runs it. An unknown job may still come.
    pub fn cancel(&self, id: u64) -> News {
        let mut jobs = self.jobs.lock();
        let parked = match jobs.places.get(&id) {
            None => {
                jobs.expect_cancelled(id, self.max_jobs);
                return News::default();
            }
            Some(Place::Running { cancel, .. }) => {
                // {dev-cancel}
                cancel.store(true, Ordering::Release);
                self.lateness.wake();
                return News::default();
            }
            Some(Place::Parked(fault)) => Some(*fault),
            Some(Place::Retried(gone)) => {
                gone.store(true, Ordering::Release);
                None
            }
            Some(Place::Runnable) => None,
        };
        let job = match parked {
            // {dev-cancel-parked}
            Some(fault) => jobs.faults.withdraw(fault).map(|parked| parked.job),
            None => jobs.take(|job| job.id == id).pop_front(),
        };
        if let Some(job) = job {
            jobs.end(job, End::Cancelled, &self.counters);
        }
        self.lateness.wake();
        News {
            ended: true,
            faults: false,
        }
    }

    /// Ends all jobs of a space, or all jobs, and waits until no engine runs any of them. The
    /// caller must first ensure that no jobs are added.
    pub fn cancel_all(&self, space: Option<u32>) -> News {
        let concerns = |id: u32| space.is_none_or(|space| space == id);
        let mut jobs = self.jobs.lock();
        let before = jobs.ended.len();
        if space.is_none() {
            // Names may be used for other jobs from here on.
            jobs.cancelled_early.clear();
        }
        let mut ending: Vec<Box<Job>> = Vec::new();
        for job in jobs.take(|job| concerns(job.space.id())) {
            if let Some(Place::Retried(gone)) = jobs.places.get(&job.id) {
                gone.store(true, Ordering::Release);
            }
            ending.push(job);
        }
        self.lateness.wake();
        ending.extend(jobs.faults.withdraw_where(|job| concerns(job.space.id())));
        for job in ending {
            jobs.end(job, End::Cancelled, &self.counters);
        }
        // Marks all of them before the first wait: a job that was put back without its mark would
        // park, or wait for an engine, and outlive its space.
        let mark_running = |jobs: &Jobs| {
            let marked = jobs.places.values().filter(|place| match place {
                Place::Running { space, cancel } if concerns(*space) => {
                    cancel.store(true, Ordering::Release);
                    true
                }
                _ => false,
            });
            marked.count()
        };
        // A job that was put back has ended, because it was cancelled.
        while mark_running(&jobs) > 0 {
            self.lateness.wake();
            self.put_back.wait(&mut jobs);
        }
        News {
            ended: jobs.ended.len() != before,
            faults: false,
        }
    }

    /// Takes the ends of jobs that were not collected yet.
    pub fn take_ended(&self) -> Vec<Ended> {
        std::mem::take(&mut self.jobs.lock().ended)
    }

    /// The number of fault records that wait to be reported.
    pub fn faults_waiting(&self) -> usize {
        self.jobs.lock().faults.waiting()
    }

    /// Moves the second waiting fault before the first.
    pub fn swap_faults(&self) {
        self.jobs.lock().faults.swap();
    }

    /// Takes up to `most` fault records that were not reported.
    pub fn report_faults(&self, most: usize) -> Vec<FaultRecord> {
        self.jobs.lock().faults.report(most)
    }

    /// The number of jobs that have not ended, and of those among them that wait for a page.
    pub fn count(&self) -> (usize, usize) {
        let jobs = self.jobs.lock();
        (jobs.places.len(), jobs.faults.parked())
    }
}

/// Records an answer to the fault of a job.
fn answered(job: &Job, retry: bool) {
    trace::moment(Some(job.space.id()), || Event::Answer {
        job: job.id,
        retry,
    });
}

impl Jobs {
    fn admits(&mut self, id: u64, max_jobs: usize) -> Result<(), Status> {
        if self.closed {
            return Err(Status::NotReady);
        }
        let full = self.places.len() >= max_jobs;
        match self.places.entry(id) {
            _ if full => Err(Status::Limit),
            Entry::Occupied(_) => Err(Status::Exists),
            Entry::Vacant(_) => Ok(()),
        }
    }

    /// Takes out jobs that wait for an engine, or that are delayed before they do.
    fn take(&mut self, wanted: impl Fn(&Job) -> bool) -> VecDeque<Box<Job>> {
        let mut taken = self.runnable.take(&wanted);
        let (late, rest) = std::mem::take(&mut self.retried)
            .into_iter()
            .partition(|job| wanted(job));
        self.retried = rest;
        taken.extend::<VecDeque<_>>(late);
        taken
    }

    /// Remembers to end a job that has not come yet. If there are `max_jobs` such names, it
    /// replaces the oldest.
    fn expect_cancelled(&mut self, id: u64, max_jobs: usize) {
        if self.cancelled_early.contains(&id) {
            return;
        }
        if self.cancelled_early.len() >= max_jobs {
            self.cancelled_early.pop_front();
        }
        self.cancelled_early.push_back(id);
    }

    fn was_cancelled_early(&mut self, id: u64) -> bool {
        let index = self.cancelled_early.iter().position(|&name| name == id);
        index
            .and_then(|index| self.cancelled_early.remove(index))
            .is_some()
    }

    /// Consumes the job, so that its space is unused when its end is reported. {dev-job-quiet}
    fn end(&mut self, job: Box<Job>, end: End, counters: &Counters) {
        trace::moment(Some(job.space.id()), || Event::Ended {
            job: job.id,
            how: end.word().into(),
        });
        self.places.remove(&job.id);
        counters.jobs_ended.add(1);
        if matches!(end, End::Finished(Status::Ok, _)) {
            counters.jobs_ok.add(1);
        }
        self.ended.push(job.end(end));
    }
}
