//! Mappings change while jobs use them.
//!
//! Several threads each have an arena. In each round a thread fills its memory with the tag of a
//! new generation, submits jobs on it, and changes the mapping while they run. It then checks the
//! result against a [model] of what is possible. The jobs add up the memory, or write the
//! next generation's tag over it.
//!
//! The seed decides the steps, but not how the steps of threads meet in time.

mod child;
mod model;
mod words;

use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use anyhow::{ensure, Context, Result};
use fastrand::Rng;
use hmm::spec::wire::operation as op;
use hmm::{page_size, Destination, Element, Error, Job, Operation, PageRange, Reason, Space};
use hmm_tool::runner::{WorkloadCtx, MAX_MISTAKES};

use crate::arena::{Arena, Slot};
use child::Child;
use model::{Change, Kind, Model};
use words::{tag, WordCounts, MAX_WORDS};

/// Threads, each with its own memory.
const LANES: usize = 3;

/// Memory of a lane.
const SLOT_BYTES: usize = 4 << 20;

// Otherwise a sum of tags could not be decoded.
const _: () = assert!(SLOT_BYTES / size_of::<u64>() <= MAX_WORDS);

/// Jobs in a round.
const JOBS: u64 = 4;

/// The longest pause between submitting and changing, in iterations of an empty loop: about as long
/// as such jobs take, so that changes come before, during and after them.
const MAX_PAUSE: u32 = 200_000;

/// Counts of how jobs have ended.
#[derive(Clone, Copy, Debug, Default)]
struct JobCounts {
    well: u64,
    faulted: u64,
    gave_up: u64,
}

/// A thread's memory and its findings.
struct Lane<'a> {
    space: &'a Space,
    number: usize,
    arena: Arena,
    random: Rng,
    generation: u64,
    counts: JobCounts,
    mistakes: Vec<String>,
}

/// Runs all lanes at the same time.
pub(crate) fn run(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let rounds = ctx.size();
    let space = ctx.space;
    let mut lanes = Vec::new();
    for number in 0..LANES {
        let random = ctx.random.fork();
        lanes.push(Lane::new(space, number, random).context("reserving addresses")?);
    }
    // A thread's stack must not be mapped into another thread's hole.
    let all_started = &Barrier::new(LANES);
    let start = Instant::now();
    thread::scope(|scope| {
        for lane in &mut lanes {
            scope.spawn(move || {
                all_started.wait();
                lane.run(rounds.div_ceil(LANES));
            });
        }
    });
    ctx.add_device_time(start.elapsed());
    let mut all = JobCounts::default();
    for lane in lanes {
        all.well += lane.counts.well;
        all.faulted += lane.counts.faulted;
        all.gave_up += lane.counts.gave_up;
        for mistake in lane.mistakes {
            ctx.check(false, || mistake);
        }
    }
    ctx.check(all.well > 0, || "not one job ended well".into());
    ctx.report.note = format!(
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
            counts: JobCounts::default(),
            // During a round the process may have a hole in its addresses, and nothing else may
            // then be mapped by chance. So vectors are allocated beforehand.
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
            let outcome = self.round(model, pages);
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

    /// One round. An error is something that must not happen.
    fn round(&mut self, model: Model, pages: usize) -> Result<()> {
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

        let operations = self.operations(model.kind, words);
        // SAFETY: jobs that write do so to the arena's home, which is never a hole while they run,
        // and which all others access through atomics. All jobs are awaited below, or when they are
        // dropped, before the arena is.
        let jobs = unsafe { self.space.submit_all(&operations) }?;
        for _ in 0..self.random.u32(..MAX_PAUSE) {
            std::hint::spin_loop();
        }
        let seen = self.change(model, range, words);
        let all_succeeded = self.end(jobs, model, range, words);
        // Both results were awaited before: no job is left behind.
        let (seen, all_succeeded) = (seen?, all_succeeded?);
        self.check_after(model, words, seen, all_succeeded)
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

    /// Changes the mapping. The values seen right afterwards must never change again.
    fn change(&mut self, model: Model, range: PageRange, words: usize) -> Result<Seen> {
        match model.change {
            Change::Replace => {
                self.arena.replace()?;
                if model.kind == Kind::Read {
                    self.arena.fill(words, tag(self.generation + 1));
                }
            }
            Change::Unmap => self.arena.unmap()?,
            Change::Close => self.arena.close()?,
            Change::WriteProtect => {
                self.arena.write_protect()?;
                return Ok(self.seen(Slot::Home, words));
            }
            Change::Discard => self.arena.discard()?,
            Change::Move | Change::MoveLeaving => {
                let leave = model.change == Change::MoveLeaving;
                self.arena.move_away(leave)?;
                return Ok(self.seen(Slot::Away, words));
            }
            Change::Fork => return Ok(Seen::Child(Child::fork(&self.arena, words)?)),
            Change::ToDevice => drop(self.space.migrate(range, Destination::Device)?),
            Change::ToSystem => drop(self.space.migrate(range, Destination::System)?),
            Change::Touch => {
                std::hint::black_box(self.count(Slot::Home, words));
            }
        }
        Ok(Seen::Nothing)
    }

    fn seen(&self, slot: Slot, words: usize) -> Seen {
        Seen::Words(slot, self.count(slot, words))
    }

    fn count(&self, slot: Slot, words: usize) -> WordCounts {
        WordCounts::of_words(self.arena.words(slot, words), self.generation)
    }

    /// Waits for the jobs. Returns whether all succeeded.
    fn end(
        &mut self,
        jobs: Vec<Job<'_>>,
        model: Model,
        range: PageRange,
        words: usize,
    ) -> Result<bool> {
        let mut all_succeeded = true;
        let mut wrong = None;
        for job in jobs {
            match job.wait() {
                Ok(outcome) => {
                    self.counts.well += 1;
                    let found = WordCounts::of_sum(outcome.value[0], words, self.generation);
                    if model.kind == Kind::Read && !model.permits_reading(found) {
                        wrong = Some(format!("a job that ended well has read {found:?}"));
                    }
                }
                Err(Error::Job(failure)) => {
                    all_succeeded = false;
                    if !model.permits_failure(&failure, range) {
                        wrong = Some(format!("this must not be: {failure}"));
                    } else if failure.reason.is_some_and(|reason| reason != Reason::Busy) {
                        self.counts.faulted += 1;
                    } else {
                        self.counts.gave_up += 1;
                    }
                }
                Err(error) => wrong = Some(error.to_string()),
            }
        }
        match wrong {
            None => Ok(all_succeeded),
            Some(wrong) => anyhow::bail!(wrong),
        }
    }

    /// Checks the memory after the jobs have ended.
    fn check_after(
        &mut self,
        model: Model,
        words: usize,
        seen: Seen,
        all_succeeded: bool,
    ) -> Result<()> {
        match seen {
            Seen::Nothing => {}
            Seen::Words(slot, before) => {
                let after = self.count(slot, words);
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
        if model.kind == Kind::Write {
            let found = self.count(Slot::Home, words);
            let right = model.permits_leaving(found, all_succeeded);
            ensure!(
                right,
                "the jobs have left {found:?} (all ended well: {all_succeeded})"
            );
        }
        Ok(())
    }
}

/// The values seen right after a change, which must stay.
enum Seen {
    Nothing,
    Words(Slot, WordCounts),
    Child(Child),
}
