//! Mappings change while jobs use them.
//!
//! Several threads each have an arena. In each round a thread fills its memory with the
//! tag of a new generation, submits jobs on it, changes the mapping under their hands, and
//! holds what came of it against a [model](Model) of what may. The jobs add up the memory
//! or write the next generation's tag all over it.
//!
//! The seed decides what is done, but not how the threads' steps fall together in time.

use std::os::fd::OwnedFd;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use fastrand::Rng;
use hmm::spec::wire::{operation as op, rights};
use hmm::{
    page_size, Destination, Element, Error, Job, JobFailure, Operation, PageRange, Reason, Space,
    Status,
};
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::process::{
    kill_process, set_parent_process_death_signal, waitpid, Pid, Signal, WaitOptions,
};

use super::{Trial, MAX_MISTAKES};
use crate::arena::{Arena, Slot};
use crate::sys;

/// Threads, each with its own memory.
const LANES: usize = 3;

/// Memory of a lane. Fewer than 2^20 words, so that a sum of tags can be taken apart.
const SLOT_BYTES: usize = 4 << 20;

/// Jobs in a round.
const JOBS: u64 = 4;

/// The longest pause between submitting and changing, in turns of an empty loop: about as
/// long as such jobs take, so that changes fall before, into and behind them.
const MAX_PAUSE: u32 = 200_000;

/// How long a forked child waits for its parent.
const PATIENCE: Timespec = Timespec {
    tv_sec: 60,
    tv_nsec: 0,
};

/// Bits of a sum that count the words of one generation.
const DIGIT: u32 = 20;

/// What every word of a generation holds: one, in a digit of its own among three.
///
/// A sum thus tells how many words of each generation it is made of, and a word of the
/// generation before the last one, which no job may ever see, is among the three.
fn tag(generation: u64) -> u64 {
    1 << (DIGIT * u32::try_from(generation % 3).unwrap_or(0))
}

/// How many words of which generation a job or the CPU has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Census {
    old: u64,
    new: u64,
    zero: u64,
    /// Of the generation before the old one, or not to be explained at all.
    strange: u64,
}

impl Census {
    /// Takes a sum of `count` words apart.
    fn of_sum(sum: u64, count: usize, generation: u64) -> Self {
        let digit = |generation| sum / tag(generation) % (1 << DIGIT);
        let (old, new) = (digit(generation), digit(generation + 1));
        // Whatever no digit has room for is strange too.
        let strange = digit(generation + 2) + (sum >> (3 * DIGIT));
        let named = old + new + strange;
        let strange = strange + named.saturating_sub(count as u64);
        Self {
            old,
            new,
            zero: (count as u64).saturating_sub(named),
            strange,
        }
    }

    /// Counts words one by one.
    fn of_words(words: impl Iterator<Item = u64>, generation: u64) -> Self {
        let mut census = Self::default();
        for word in words {
            let counter = match word {
                0 => &mut census.zero,
                word if word == tag(generation) => &mut census.old,
                word if word == tag(generation + 1) => &mut census.new,
                _ => &mut census.strange,
            };
            *counter += 1;
        }
        census
    }
}

/// What is done to the memory while jobs use it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// Other memory is mapped in its place; if jobs only read, it is filled at once.
    Replace,
    Unmap,
    /// `PROT_NONE`.
    Close,
    /// `PROT_READ`.
    WriteProtect,
    Discard,
    /// Moved elsewhere; a hole remains.
    Move,
    /// Moved elsewhere; zeros remain.
    MoveLeaving,
    Fork,
    ToDevice,
    ToSystem,
    /// Read by the CPU.
    Touch,
}

/// What the jobs of a round do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Each job adds up all words.
    Read,
    /// Each job writes the new generation's tag to a part of the words.
    Write,
}

/// What may come of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Model {
    change: Change,
    /// Why a job may fail, if it may.
    fault: Option<Reason>,
    /// Whether a job that ends well may have met the zeros of fresh memory.
    zeros: bool,
    /// Whether one that reads may have met words of the new generation.
    new: bool,
}

impl Model {
    const fn new(change: Change) -> Self {
        Self {
            change,
            fault: None,
            zeros: false,
            new: false,
        }
    }

    /// Changes under jobs that read, with what these may see.
    const READ: [Self; 11] = [
        Self {
            zeros: true,
            new: true,
            ..Self::new(Change::Replace)
        },
        Self {
            fault: Some(Reason::Unmapped),
            ..Self::new(Change::Unmap)
        },
        Self {
            fault: Some(Reason::Denied),
            ..Self::new(Change::Close)
        },
        Self::new(Change::WriteProtect),
        Self {
            zeros: true,
            ..Self::new(Change::Discard)
        },
        Self {
            fault: Some(Reason::Unmapped),
            ..Self::new(Change::Move)
        },
        Self {
            zeros: true,
            ..Self::new(Change::MoveLeaving)
        },
        Self::new(Change::Fork),
        Self::new(Change::ToDevice),
        Self::new(Change::ToSystem),
        Self::new(Change::Touch),
    ];

    /// Changes under jobs that write, with what these may leave behind. None of them makes
    /// a hole, into which somebody else's memory could come and be written to.
    const WRITE: [Self; 8] = [
        Self {
            zeros: true,
            ..Self::new(Change::Replace)
        },
        Self {
            fault: Some(Reason::Denied),
            ..Self::new(Change::WriteProtect)
        },
        Self {
            zeros: true,
            ..Self::new(Change::Discard)
        },
        Self {
            zeros: true,
            ..Self::new(Change::MoveLeaving)
        },
        Self::new(Change::Fork),
        Self::new(Change::ToDevice),
        Self::new(Change::ToSystem),
        Self::new(Change::Touch),
    ];

    fn choose(kind: Kind, random: &mut Rng) -> Self {
        let models: &[Self] = match kind {
            Kind::Read => &Self::READ,
            Kind::Write => &Self::WRITE,
        };
        models[random.usize(..models.len())]
    }

    /// Whether a job that reads may have found this.
    fn permits_reading(&self, found: Census) -> bool {
        found.strange == 0 && (self.new || found.new == 0) && (self.zeros || found.zero == 0)
    }

    /// Whether jobs that write may have left this behind; `all_well` says that every one of
    /// them ended well, and has thus written every word at least once.
    fn permits_leaving(&self, found: Census, all_well: bool) -> bool {
        found.strange == 0 && (!all_well || found.old == 0) && (self.zeros || found.zero == 0)
    }

    /// Whether a job may have failed so. Giving up on a mapping that does not hold still is
    /// always permitted: it is defined, and it is counted.
    fn permits_failure(&self, failure: &JobFailure, kind: Kind, range: PageRange) -> bool {
        let inside =
            failure.address >= range.address() && failure.address < range.address() + range.bytes();
        let right = match kind {
            Kind::Read => rights::READ,
            Kind::Write => rights::WRITE,
        };
        let here = inside && failure.access & right != 0;
        match failure.status {
            Status::Fault if failure.reason == Some(Reason::Busy) => here,
            Status::Fault => here && failure.reason.is_some() && failure.reason == self.fault,
            Status::Storm => here,
            _ => false,
        }
    }
}

/// How jobs have ended.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    well: u64,
    faulted: u64,
    gave_up: u64,
}

/// A thread's memory and what it has found.
struct Lane<'a> {
    space: &'a Space,
    number: usize,
    arena: Arena,
    random: Rng,
    generation: u64,
    tally: Tally,
    mistakes: Vec<String>,
}

/// Runs all lanes at once.
pub(super) fn run(trial: &mut Trial<'_>) -> Result<()> {
    let rounds = trial.size();
    let space = trial.space;
    let mut lanes = Vec::new();
    for number in 0..LANES {
        let random = trial.random.fork();
        lanes.push(Lane::new(space, number, random).context("reserving addresses")?);
    }
    // A thread's stack is not to be mapped into another one's hole.
    let all_are_here = &Barrier::new(LANES);
    let start = Instant::now();
    thread::scope(|scope| {
        for lane in &mut lanes {
            scope.spawn(move || {
                all_are_here.wait();
                lane.run(rounds.div_ceil(LANES));
            });
        }
    });
    trial.add_device_time(start.elapsed());
    let mut all = Tally::default();
    for lane in lanes {
        all.well += lane.tally.well;
        all.faulted += lane.tally.faulted;
        all.gave_up += lane.tally.gave_up;
        for mistake in lane.mistakes {
            trial.check(false, || mistake);
        }
    }
    trial.check(all.well > 0, || "not one job ended well".into());
    trial.report.note = format!(
        "jobs: {} ended well, {} with a fault as they had to, {} gave up",
        all.well, all.faulted, all.gave_up
    );
    Ok(())
}

impl<'a> Lane<'a> {
    fn new(space: &'a Space, number: usize, random: Rng) -> Result<Self> {
        Ok(Self {
            space,
            number,
            arena: Arena::reserve(SLOT_BYTES)?,
            random,
            generation: 0,
            tally: Tally::default(),
            // While a round runs there may be a hole in the process's addresses; nothing
            // may then map memory by chance, so vectors get their room beforehand.
            mistakes: Vec::with_capacity(MAX_MISTAKES + 1),
        })
    }

    fn run(&mut self, rounds: usize) {
        for round in 0..rounds {
            let kind = if self.random.bool() {
                Kind::Read
            } else {
                Kind::Write
            };
            let model = Model::choose(kind, &mut self.random);
            let pages = self.random.usize(1..=SLOT_BYTES / page_size());
            let outcome = self.round(kind, model, pages);
            if let Err(error) = outcome {
                self.mistakes.push(format!(
                    "lane {}, round {round}, {:?} under jobs that {kind:?} {pages} pages: {error:#}",
                    self.number, model.change
                ));
                if self.mistakes.len() > MAX_MISTAKES {
                    return;
                }
            }
        }
    }

    /// One round. What must not be is an error.
    fn round(&mut self, kind: Kind, model: Model, pages: usize) -> Result<()> {
        let words = pages * page_size() / size_of::<u64>();
        self.generation += 1;
        self.arena
            .renew(self.random.bool())
            .context("mapping memory")?;
        self.arena.fill(words, tag(self.generation));
        let home = usize::try_from(self.arena.address(Slot::Home))?;
        let range = PageRange::around(home..home + pages * page_size());
        if self.random.bool() {
            self.space.migrate(range, Destination::Device)?;
        }

        let operations = self.operations(kind, words);
        // SAFETY: jobs that write do so to the arena's home, which is never a hole while
        // they run, and which everybody else uses through atomics. All jobs are awaited
        // below, or when they are dropped, before the arena is.
        let jobs = unsafe { self.space.submit_all(&operations) }?;
        for _ in 0..self.random.u32(..MAX_PAUSE) {
            std::hint::spin_loop();
        }
        let seen = self.change(kind, model, range, words);
        let all_well = self.end(jobs, kind, model, range, words);
        // Both were done in any case: no job is left behind.
        let (seen, all_well) = (seen?, all_well?);
        self.check_after(kind, model, words, seen, all_well)
    }

    fn operations(&mut self, kind: Kind, words: usize) -> Vec<Operation> {
        let home = self.arena.address(Slot::Home);
        let jobs = self.random.u64(1..=JOBS);
        let part = |index: u64| index * words as u64 / jobs;
        let operation = |index| match kind {
            Kind::Read => op::Sum {
                source: home,
                count: words as u64,
                element: Element::U64,
            }
            .into(),
            Kind::Write => op::Fill {
                destination: home + part(index) * 8,
                bytes: (part(index + 1) - part(index)) * 8,
                pattern: tag(self.generation + 1),
            }
            .into(),
        };
        (0..jobs).map(operation).collect()
    }

    /// Changes the mapping. What is seen right afterwards must never change again.
    fn change(&mut self, kind: Kind, model: Model, range: PageRange, words: usize) -> Result<Seen> {
        match model.change {
            Change::Replace => {
                self.arena.replace()?;
                if kind == Kind::Read {
                    self.arena.fill(words, tag(self.generation + 1));
                }
            }
            Change::Unmap => self.arena.unmap()?,
            Change::Close => self.arena.close()?,
            Change::WriteProtect => {
                self.arena.write_protect()?;
                return Ok(Seen::Words(Slot::Home, self.census(Slot::Home, words)));
            }
            Change::Discard => self.arena.discard()?,
            Change::Move => {
                self.arena.move_away(false)?;
                return Ok(Seen::Words(Slot::Away, self.census(Slot::Away, words)));
            }
            Change::MoveLeaving => {
                self.arena.move_away(true)?;
                return Ok(Seen::Words(Slot::Away, self.census(Slot::Away, words)));
            }
            Change::Fork => return Ok(Seen::Child(Child::fork(&self.arena, words)?)),
            Change::ToDevice => drop(self.space.migrate(range, Destination::Device)?),
            Change::ToSystem => drop(self.space.migrate(range, Destination::System)?),
            Change::Touch => {
                std::hint::black_box(self.census(Slot::Home, words));
            }
        }
        Ok(Seen::Nothing)
    }

    fn census(&self, slot: Slot, words: usize) -> Census {
        Census::of_words(self.arena.words(slot, words), self.generation)
    }

    /// Waits for the jobs: whether all ended well.
    fn end(
        &mut self,
        jobs: Vec<Job<'_>>,
        kind: Kind,
        model: Model,
        range: PageRange,
        words: usize,
    ) -> Result<bool> {
        let mut all_well = true;
        let mut wrong = None;
        for job in jobs {
            match job.wait() {
                Ok(outcome) => {
                    self.tally.well += 1;
                    let found = Census::of_sum(outcome.value[0], words, self.generation);
                    if kind == Kind::Read && !model.permits_reading(found) {
                        wrong = Some(format!("a job that ended well has read {found:?}"));
                    }
                }
                Err(Error::Job(failure)) => {
                    all_well = false;
                    if !model.permits_failure(&failure, kind, range) {
                        wrong = Some(format!("this must not be: {failure}"));
                    } else if failure.reason.is_some_and(|reason| reason != Reason::Busy) {
                        self.tally.faulted += 1;
                    } else {
                        self.tally.gave_up += 1;
                    }
                }
                Err(error) => wrong = Some(error.to_string()),
            }
        }
        match wrong {
            None => Ok(all_well),
            Some(wrong) => anyhow::bail!(wrong),
        }
    }

    /// Looks at the memory after the jobs have ended.
    fn check_after(
        &mut self,
        kind: Kind,
        model: Model,
        words: usize,
        seen: Seen,
        all_well: bool,
    ) -> Result<()> {
        match seen {
            Seen::Nothing => {}
            Seen::Words(slot, before) => {
                let after = self.census(slot, words);
                ensure!(
                    before == after,
                    "{before:?} became {after:?} after the change was done"
                );
                ensure!(
                    before.strange == 0 && before.zero == 0,
                    "the change left {before:?}"
                );
            }
            Seen::Child(child) => {
                let status = child.end()?;
                ensure!(
                    status == Some(0),
                    "the forked child's memory changed: {status:?}"
                );
            }
        }
        if kind == Kind::Write {
            let found = self.census(Slot::Home, words);
            let right = model.permits_leaving(found, all_well);
            ensure!(
                right,
                "the jobs have left {found:?} (all ended well: {all_well})"
            );
        }
        Ok(())
    }
}

/// What was seen right after a change, which must stay so.
enum Seen {
    Nothing,
    Words(Slot, Census),
    Child(Child),
}

/// A forked child that looks at its copy of the memory twice: at once, and when the jobs of
/// its parent have ended.
struct Child {
    /// `None` when it has been waited for.
    pid: Option<Pid>,
    release: OwnedFd,
    // Kept open, so that writing to a child that has died is no SIGPIPE.
    _wait: OwnedFd,
}

impl Child {
    fn fork(arena: &Arena, words: usize) -> Result<Self> {
        let (wait, release) = rustix::pipe::pipe().context("making a pipe")?;
        let parent = rustix::process::getpid();
        let body = || {
            // It has the device open, and must not keep it so when nobody waits any more.
            let orphaned = set_parent_process_death_signal(Some(Signal::KILL)).is_err()
                || rustix::process::getppid() != Some(parent);
            if orphaned {
                return 2;
            }
            let before: u64 = arena.words(Slot::Home, words).fold(0, u64::wrapping_add);
            let mut released = [PollFd::new(&wait, PollFlags::IN)];
            if poll(&mut released, Some(&PATIENCE)) != Ok(1) {
                return 2;
            }
            let after: u64 = arena.words(Slot::Home, words).fold(0, u64::wrapping_add);
            u8::from(before != after)
        };
        // SAFETY: the child makes system calls and reads memory; neither allocates nor takes a
        // lock.
        let pid = unsafe { sys::fork(body) }.context("forking")?;
        Ok(Self {
            pid: Some(pid),
            release,
            _wait: wait,
        })
    }

    /// Lets the child look again: its exit status.
    fn end(mut self) -> Result<Option<i32>> {
        rustix::io::write(&self.release, &[1]).context("releasing the child")?;
        self.reap()
    }

    fn reap(&mut self) -> Result<Option<i32>> {
        let Some(pid) = self.pid.take() else {
            return Ok(None);
        };
        let ended = loop {
            match waitpid(Some(pid), WaitOptions::empty()) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other.context("waiting for the child")?,
            }
        };
        Ok(ended.and_then(|(_, status)| status.exit_status()))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if let Some(pid) = self.pid {
            // It may have ended by itself.
            let _ = kill_process(pid, Signal::KILL);
            let _ = self.reap();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmm::Usage;

    /// Enough that no sum of tags overflows its digit.
    const WORDS: usize = SLOT_BYTES / 8;

    fn failure(status: Status, reason: Option<Reason>, address: u64) -> JobFailure {
        JobFailure {
            status,
            reason,
            address,
            access: rights::READ,
            values: [0; 4],
            usage: Usage::default(),
        }
    }

    fn model(change: Change) -> Model {
        *Model::READ
            .iter()
            .find(|model| model.change == change)
            .unwrap()
    }

    #[test]
    fn a_sum_tells_how_many_words_of_each_generation_it_is_made_of() {
        for generation in 0..4 {
            let sum = 1000 * tag(generation) + 50 * tag(generation + 1);
            let census = Census::of_sum(sum, 1060, generation);
            assert_eq!(
                census,
                Census {
                    old: 1000,
                    new: 50,
                    zero: 10,
                    strange: 0
                }
            );
        }
        let full = Census::of_sum(WORDS as u64 * tag(2), WORDS, 2);
        assert_eq!(
            full,
            Census {
                old: WORDS as u64,
                ..Census::default()
            }
        );
    }

    #[test]
    fn a_single_word_of_an_outdated_generation_is_strange() {
        let stale = 999 * tag(7) + tag(6);
        assert_eq!(Census::of_sum(stale, 1000, 7).strange, 1);
        assert_eq!(
            Census::of_words([tag(7), tag(6), 0].into_iter(), 7).strange,
            1
        );
    }

    #[test]
    fn poison_and_too_many_words_are_strange() {
        assert!(Census::of_sum(u64::from_ne_bytes([0xa5; 8]), 10, 1).strange > 0);
        assert!(Census::of_sum(11 * tag(1), 10, 1).strange > 0);
        assert_eq!(Census::of_words([u64::MAX].into_iter(), 1).strange, 1);
    }

    #[test]
    fn a_job_sees_fresh_memory_only_where_there_is_some() {
        let zeros = Census {
            old: 5,
            zero: 5,
            ..Census::default()
        };
        let new = Census {
            old: 5,
            new: 5,
            ..Census::default()
        };
        assert!(model(Change::Discard).permits_reading(zeros));
        assert!(!model(Change::Discard).permits_reading(new));
        assert!(model(Change::Replace).permits_reading(new));
        assert!(!model(Change::Unmap).permits_reading(zeros));
        assert!(!model(Change::Fork).permits_reading(zeros));
        let strange = Census {
            strange: 1,
            ..Census::default()
        };
        assert!(!model(Change::Replace).permits_reading(strange));
    }

    #[test]
    fn jobs_that_ended_well_leave_no_word_unwritten() {
        let half = Census {
            old: 5,
            new: 5,
            ..Census::default()
        };
        let model = Model::WRITE
            .iter()
            .find(|m| m.change == Change::WriteProtect)
            .unwrap();
        assert!(model.permits_leaving(half, false));
        assert!(!model.permits_leaving(half, true));
    }

    #[test]
    fn a_fault_is_permitted_only_inside_the_memory_and_for_the_reason_of_the_change() {
        let range = PageRange::around(4096..8192);
        let fault = |reason, address| failure(Status::Fault, Some(reason), address);
        let permits = |change, failure: JobFailure| {
            model(change).permits_failure(&failure, Kind::Read, range)
        };
        assert!(permits(Change::Unmap, fault(Reason::Unmapped, 4096)));
        assert!(!permits(Change::Unmap, fault(Reason::Unmapped, 8192)));
        assert!(!permits(Change::Unmap, fault(Reason::Denied, 4096)));
        assert!(permits(Change::Close, fault(Reason::Denied, 8191)));
        assert!(!permits(Change::Fork, fault(Reason::Unmapped, 4096)));
        assert!(permits(Change::Fork, fault(Reason::Busy, 4096)));
        assert!(!permits(Change::Unmap, failure(Status::Cancelled, None, 0)));
        assert!(!permits(Change::Fork, failure(Status::Fault, None, 4096)));
    }

    #[test]
    fn no_change_under_jobs_that_write_makes_a_hole() {
        for model in Model::WRITE {
            assert!(
                !matches!(model.change, Change::Unmap | Change::Move),
                "{model:?}"
            );
        }
    }

    #[test]
    fn a_child_tells_that_its_memory_stayed_as_it_was() {
        let mut arena = Arena::reserve(SLOT_BYTES).unwrap();
        arena.renew(false).unwrap();
        arena.fill(1000, 1);
        let child = Child::fork(&arena, 1000).unwrap();
        arena.fill(1000, 2);
        assert_eq!(child.end().unwrap(), Some(0));
    }
}
