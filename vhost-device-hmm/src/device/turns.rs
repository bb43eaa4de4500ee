//! Time slices: spaces take turns, and within each space its jobs take turns.
//!
//! Otherwise a space with many jobs would get an engine many times as often as a space with a
//! single job, whose process may belong to another user.

use std::collections::{HashMap, VecDeque};

use super::job::Job;

/// Jobs that can run.
#[derive(Debug, Default)]
pub(super) struct Turns {
    /// The jobs of each space that has had any. At most one entry per space.
    jobs: HashMap<u32, VecDeque<Box<Job>>>,
    /// The spaces that have jobs, each once, the next one first.
    spaces: VecDeque<u32>,
    count: usize,
}

impl Turns {
    /// The number of jobs.
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Queues a job behind all others of its space. If the space had none, queues the space behind
    /// all other spaces.
    pub(super) fn push(&mut self, job: Box<Job>) {
        let space = job.space.id();
        let jobs = self.jobs.entry(space).or_default();
        if jobs.is_empty() {
            self.spaces.push_back(space);
        }
        jobs.push_back(job);
        self.count += 1;
    }

    /// All jobs, in no particular order.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Job> {
        self.jobs.values().flatten().map(Box::as_ref)
    }

    /// Takes the next job. {dev-job-turns}
    pub(super) fn pop(&mut self) -> Option<Box<Job>> {
        let space = self.spaces.pop_front()?;
        let jobs = self.jobs.get_mut(&space)?;
        let job = jobs.pop_front()?;
        if !jobs.is_empty() {
            self.spaces.push_back(space);
        }
        self.count -= 1;
        Some(job)
    }

    /// Takes out the jobs that match.
    pub(super) fn take(&mut self, wanted: impl Fn(&Job) -> bool) -> VecDeque<Box<Job>> {
        let mut taken = VecDeque::new();
        for jobs in self.jobs.values_mut() {
            let (wanted, rest): (VecDeque<_>, _) = jobs.drain(..).partition(|job| wanted(job));
            taken.extend(wanted);
            *jobs = rest;
        }
        let jobs = &self.jobs;
        let has_jobs = |space: &u32| jobs.get(space).is_some_and(|jobs| !jobs.is_empty());
        self.spaces.retain(has_jobs);
        self.count -= taken.len();
        taken
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use virtio_hmm_spec::wire::operation::Fill;

    use super::*;
    use crate::device::mmu::Budget;
    use crate::device::operations::Work;
    use crate::device::space::{Epochs, Space};

    /// Jobs in spaces: the name of each, and its space.
    fn turns(jobs: &[(u64, u32)]) -> Turns {
        let (budget, epochs) = (Budget::new(1 << 20), Epochs::new());
        let mut turns = Turns::default();
        for &(job, space) in jobs {
            let space = Arc::new(Space::new(space, &budget, &epochs).unwrap());
            let fill = Fill {
                destination: 0,
                bytes: 8,
                pattern: 0,
            };
            let work = Work::new(fill.into()).unwrap();
            turns.push(Box::new(Job::new(job, space, work, job)));
        }
        turns
    }

    /// The jobs that get the next turns, if each continues.
    fn next(turns: &mut Turns, count: usize) -> Vec<u64> {
        let turn = |_| {
            let job = turns.pop().unwrap();
            let id = job.id;
            turns.push(job);
            id
        };
        (0..count).map(turn).collect()
    }

    // {dev-job-turns}
    #[test]
    fn a_space_with_many_jobs_has_no_more_turns_than_one_with_a_single_job() {
        let mut turns = turns(&[(1, 1), (2, 1), (3, 1), (4, 1), (9, 2)]);
        assert_eq!(next(&mut turns, 10), [1, 9, 2, 9, 3, 9, 4, 9, 1, 9]);
    }

    #[test]
    fn a_job_that_comes_waits_for_one_turn_of_each_other_space_at_most() {
        let mut turns = turns(&[(1, 1), (2, 1), (3, 1), (4, 2), (5, 2)]);
        assert_eq!(next(&mut turns, 3), [1, 4, 2]);
        turns.push(self::turns(&[(9, 3)]).pop().unwrap());
        assert_eq!(next(&mut turns, 6), [5, 3, 9, 4, 1, 9]);
    }

    #[test]
    fn what_is_taken_out_has_no_turn() {
        let mut turns = turns(&[(1, 1), (2, 1), (3, 2), (4, 3)]);
        let taken = turns.take(|job| job.id == 1 || job.space.id() == 2);
        assert_eq!((taken.len(), turns.len()), (2, 2));
        assert_eq!(next(&mut turns, 4), [2, 4, 2, 4]);
        assert_eq!(turns.take(|_| true).len(), 2);
        assert!(turns.pop().is_none());
    }
}
