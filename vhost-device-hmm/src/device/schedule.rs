//! Which job runs next, which ones wait, and who must be told when one ends.
//!
//! All jobs are behind one lock, which is never held while a job runs, while a space
//! is locked, or while the outside is told something.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::fault::{FaultRecord, Reason};

use super::fault::{FaultId, Faults};
use super::job::{End, Ended, Job};
use super::operations::Fault;
use super::statistics::Counters;

/// Asks the engine that runs a job to stop.
pub type CancelFlag = Arc<AtomicBool>;

/// What an engine is given to run.
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
    /// Its time is over.
    Paused,
    /// It needs a page, and will want so many in the same way.
    Stopped(Fault, u32),
    /// It has ended.
    Ended(End),
}

/// What the outside should look at after a change.
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
    jobs: Mutex<Jobs>,
    /// There is something to run, or nothing will ever be again.
    work: Condvar,
    /// An engine has put a job back.
    put_back: Condvar,
}

#[derive(Debug, Default)]
struct Jobs {
    places: HashMap<u64, Place>,
    runnable: VecDeque<Box<Job>>,
    faults: Faults,
    ended: Vec<Ended>,
    closed: bool,
    paused: bool,
    finished: bool,
}

/// Where a job is.
#[derive(Debug)]
enum Place {
    Runnable,
    Running { space: u32, cancel: CancelFlag },
    Parked(FaultId),
}

impl Schedule {
    /// An empty schedule for so many jobs; it takes none until it is opened.
    pub fn new(max_jobs: u32, counters: Arc<Counters>) -> Self {
        Self {
            max_jobs: usize::try_from(max_jobs).unwrap_or(usize::MAX),
            counters,
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

    /// Takes no jobs any more.
    pub fn close(&self) {
        self.jobs.lock().closed = true;
    }

    /// Gives no job to an engine until [`Schedule::resume`], and waits until no engine has
    /// one.
    pub fn pause(&self) {
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
        self.work.notify_all();
    }

    /// Lets the engines go: [`Schedule::next`] returns nothing any more.
    pub fn finish(&self) {
        let mut jobs = self.jobs.lock();
        jobs.closed = true;
        jobs.finished = true;
        self.work.notify_all();
    }

    /// Whether a job with this name may come in.
    ///
    /// # Errors
    ///
    /// [`Status::NotReady`], [`Status::Limit`] or [`Status::Exists`].
    pub fn admits(&self, id: u64) -> Result<(), Status> {
        self.jobs.lock().admits(id, self.max_jobs)
    }

    /// Puts a new job at the end of the run queue.
    ///
    /// # Errors
    ///
    /// As [`Schedule::admits`], and [`Status::NoSpace`] when its space was destroyed.
    pub fn insert(&self, job: Job) -> Result<(), Status> {
        let mut jobs = self.jobs.lock();
        jobs.admits(job.id, self.max_jobs)?;
        // Looked at under the lock: whoever destroys the space ends its jobs after it
        // has retired it, under this lock too.
        if !job.space.alive() {
            return Err(Status::NoSpace);
        }
        jobs.places.insert(job.id, Place::Runnable);
        jobs.runnable.push_back(Box::new(job));
        self.work.notify_one();
        Ok(())
    }

    /// Waits for something to run; `None` when the engine shall end.
    pub fn next(&self) -> Option<Turn> {
        let mut jobs = self.jobs.lock();
        loop {
            if jobs.finished {
                return None;
            }
            let next = if jobs.paused {
                None
            } else {
                jobs.runnable.pop_front()
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
                jobs.runnable.push_back(job);
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
                    let fault = jobs.faults.raise(job, fault, pages);
                    jobs.places.insert(id, Place::Parked(fault));
                    news.faults = true;
                }
            }
        }
        self.put_back.notify_all();
        news
    }

    /// The driver says that a page is there: the job runs on. Returns whether the fault
    /// was waiting for that.
    pub fn retry(&self, fault: FaultId) -> bool {
        let mut jobs = self.jobs.lock();
        let Some(parked) = jobs.faults.answer(fault) else {
            self.counters.answers_late.add(1);
            return false;
        };
        self.counters.faults_retried.add(1);
        jobs.places.insert(parked.job.id, Place::Runnable);
        jobs.runnable.push_back(parked.job);
        self.work.notify_one();
        true
    }

    /// The driver says that a page cannot be had: the job ends.
    pub fn terminate(&self, fault: FaultId, reason: Reason) -> News {
        let mut jobs = self.jobs.lock();
        let Some(parked) = jobs.faults.answer(fault) else {
            self.counters.answers_late.add(1);
            return News::default();
        };
        self.counters.faults_terminated.add(1);
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

    /// Ends a job early; does not wait for the engine that runs it.
    pub fn cancel(&self, id: u64) -> News {
        let mut jobs = self.jobs.lock();
        let parked = match jobs.places.get(&id) {
            None => return News::default(),
            Some(Place::Running { cancel, .. }) => {
                cancel.store(true, Ordering::Release);
                return News::default();
            }
            Some(Place::Parked(fault)) => Some(*fault),
            Some(Place::Runnable) => None,
        };
        let job = match parked {
            Some(fault) => jobs.faults.withdraw(fault).map(|parked| parked.job),
            None => jobs
                .runnable
                .iter()
                .position(|job| job.id == id)
                .and_then(|index| jobs.runnable.remove(index)),
        };
        if let Some(job) = job {
            jobs.end(job, End::Cancelled, &self.counters);
        }
        News {
            ended: true,
            faults: false,
        }
    }

    /// Ends all jobs of a space, or all there are, and waits until no engine runs any of
    /// them. Those who add jobs must have been stopped before.
    pub fn cancel_all(&self, space: Option<u32>) -> News {
        let concerns = |id: u32| space.is_none_or(|space| space == id);
        let mut jobs = self.jobs.lock();
        let before = jobs.ended.len();
        let mut ending: Vec<Box<Job>> = Vec::new();
        let (concerned, rest) = jobs
            .runnable
            .drain(..)
            .partition(|job| concerns(job.space.id()));
        jobs.runnable = rest;
        ending.extend(Vec::from(concerned));
        ending.extend(jobs.faults.withdraw_where(|job| concerns(job.space.id())));
        for job in ending {
            jobs.end(job, End::Cancelled, &self.counters);
        }
        let running = |jobs: &Jobs| {
            jobs.places.values().any(|place| match place {
                Place::Running { space, cancel } if concerns(*space) => {
                    cancel.store(true, Ordering::Release);
                    true
                }
                _ => false,
            })
        };
        // A job that was put back has ended, because it was told to.
        while running(&jobs) {
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

    /// How many fault records wait to be reported.
    pub fn faults_waiting(&self) -> usize {
        self.jobs.lock().faults.waiting()
    }

    /// Takes up to so many fault records that were not reported.
    pub fn report_faults(&self, most: usize) -> Vec<FaultRecord> {
        self.jobs.lock().faults.report(most)
    }

    /// How many jobs have not ended, and how many of them wait for a page.
    pub fn count(&self) -> (usize, usize) {
        let jobs = self.jobs.lock();
        (jobs.places.len(), jobs.faults.parked())
    }
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

    /// Takes the job itself, so that whoever waits for its end finds its space unused.
    fn end(&mut self, job: Box<Job>, end: End, counters: &Counters) {
        self.places.remove(&job.id);
        counters.jobs_ended.add(1);
        if matches!(end, End::Finished(Status::Ok, _)) {
            counters.jobs_ok.add(1);
        }
        self.ended.push(job.end(end));
    }
}
