//! Deliberate delays and faults of the device.
//!
//! Each moment that the specification leaves to the device is a [`Point`]. A thread that passes a
//! point asks here whether a rule applies, and waits if one says so. Which occasions a rule picks
//! depends only on their order and the rule's seed, so that a run can be repeated. This module
//! knows neither requests nor rings.
//!
//! A wait ends when its time is over, when it is released, when its queue is stopped (a change of
//! the guest's memory is a stop, too), or when the connection ends. A waiting thread must hold no
//! lock that the specification would not let a slow device hold.
//!
//! Lock order: the state here is taken last. The only code called with it held is a waiter's check
//! whether to continue.

mod mishap;
mod rule;

use std::sync::atomic::{fence, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hmm_timeline::device::Event;
use parking_lot::{Condvar, Mutex};
use virtio_hmm_spec::points::Point;
use virtio_hmm_spec::wire::Queue;

use crate::trace;

pub use mishap::{garble, unknown_status, wrong_result};
pub use rule::{
    kebab, parse_time, About, Action, ReplyMishap, Rule, RuleError, DEFAULT_LIMIT, LONGEST,
};

/// The most rules at a time: more than a person or a search can distinguish.
pub const MAX_RULES: usize = 256;

/// How often a wait for a held item checks whether its client is still connected.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Names a rule in force.
pub type RuleId = u64;

/// The rules in force, and the threads that wait because of them.
#[derive(Debug, Default)]
pub struct Lateness {
    /// A bit for each point that a rule concerns. Without a rule, only this is read.
    concerned: AtomicU64,
    /// The number of threads that wait, or are about to.
    waiting: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<InForce>,
    held: Vec<Held>,
    last_rule: RuleId,
    last_wait: u64,
    /// Counts the events that end every wait: see [`Lateness::stop`] and [`Lateness::end`].
    ends: u64,
    /// A bit for each queue, by its number, and after them one for the engines.
    stopped: u8,
    /// The number of the connection.
    connection: u64,
}

/// A rule and its counters.
#[derive(Clone, Debug)]
pub struct InForce {
    /// Its name.
    pub id: RuleId,
    /// The rule.
    pub rule: Rule,
    /// The number of occasions that it has counted.
    pub occasions: u64,
    /// The number of these at which it happened.
    pub happened: u64,
}

/// An item that is held at a point.
#[derive(Clone, Copy, Debug)]
pub struct Held {
    wait: u64,
    /// The rule that holds it.
    pub rule: RuleId,
    /// The point.
    pub point: Point,
    /// The item.
    pub about: About,
    /// The time at which the hold began.
    pub since: Instant,
    /// The time at which it ends at the latest.
    pub until: Instant,
    released: bool,
}

/// A wait that has not begun: see [`Lateness::wait`].
#[derive(Clone, Copy, Debug)]
#[must_use = "it says that the device is late here"]
pub struct Wait {
    number: u64,
    point: Point,
    about: About,
    until: Instant,
    /// The rule, if it is a hold.
    held_by: Option<RuleId>,
    ends: u64,
}

/// Why a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LatenessError {
    /// There are too many rules.
    #[error("{MAX_RULES} rules are in force; clear some first")]
    TooMany,
    /// There is no such rule.
    #[error("there is no rule {0}; `rules` lists those in force")]
    NoRule(RuleId),
}

/// The bit of a point.
fn bit(point: Point) -> u64 {
    1 << point as u64
}

/// The stop bits of a connection that has ended: more than queues and engines have.
const ENDED: u8 = u8::MAX;

/// The stop bit of a point's queue, or of the engines.
fn stop_bit(queue: Option<Queue>) -> u8 {
    1 << queue.map_or(4, |queue| queue.raw())
}

impl Lateness {
    /// A set of rules to begin with.
    pub fn new(rules: &[Rule]) -> Self {
        let lateness = Self::default();
        {
            let mut state = lateness.state.lock();
            for rule in rules {
                state.add(rule.clone());
            }
            lateness.note(&state);
        }
        lateness
    }

    /// Whether any rule concerns a point. This is the only cost of a point without rules.
    #[inline]
    pub fn concerns(&self, point: Point) -> bool {
        self.concerned.load(Ordering::Relaxed) & bit(point) != 0
    }

    /// Whether any rule concerns one of these points.
    pub fn concerns_any(&self, points: &[Point]) -> bool {
        let concerned = self.concerned.load(Ordering::Relaxed);
        points.iter().any(|point| concerned & bit(*point) != 0)
    }

    /// Passes a point: returns a wait if a rule applies. A held item counts as held from now on.
    pub fn arrive(&self, point: Point, about: About) -> Option<Wait> {
        if !self.concerns(point) {
            return None;
        }
        let mut state = self.state.lock();
        if state.stopped & stop_bit(point.queue()) != 0 {
            return None;
        }
        let late = |action| matches!(action, Action::Delay(..) | Action::Hold);
        let (rule, id, occasion) = state.happens(point, &about, late)?;
        let action = rule.action();
        let time = match action {
            Action::Hold => rule.limit(),
            _ => rule.delay(occasion),
        };
        let now = Instant::now();
        state.last_wait += 1;
        let wait = Wait {
            number: state.last_wait,
            point,
            about,
            until: now + time,
            held_by: (action == Action::Hold).then_some(id),
            ends: state.ends,
        };
        if action == Action::Hold {
            state.held.push(Held {
                wait: wait.number,
                rule: id,
                point,
                about,
                since: now,
                until: wait.until,
                released: false,
            });
            self.changed.notify_all();
        }
        // Log lines are written without a lock: the reader of the log may be slow.
        drop(state);
        log::debug!("late on purpose at {point}: rule {id} ({action}), occasion {occasion}");
        Some(wait)
    }

    /// Waits, unless `given_up` returns true. It is called again after each [`Lateness::wake`].
    pub fn wait(&self, wait: Wait, given_up: impl Fn() -> bool) {
        let begun = trace::begin();
        let mut state = self.state.lock();
        self.waiting.fetch_add(1, Ordering::Relaxed);
        // Either this call of `given_up` sees the change, or the thread that made it sees
        // `waiting`.
        fence(Ordering::SeqCst);
        let expired = loop {
            let over = Instant::now() >= wait.until;
            let held = state.held.iter().find(|held| held.wait == wait.number);
            let released = wait.held_by.is_some() && held.is_none_or(|held| held.released);
            let stopped = state.stopped & stop_bit(wait.point.queue()) != 0;
            if over || released || stopped || state.ends != wait.ends || given_up() {
                state.held.retain(|held| held.wait != wait.number);
                break match wait.held_by {
                    Some(rule) if over && !released => self.expire(&mut state, rule),
                    _ => None,
                };
            }
            self.changed.wait_until(&mut state, wait.until);
        };
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.changed.notify_all();
        drop(state);
        trace::since(begun, wait.about.space, || Event::Late {
            point: wait.point.name().into(),
        });
        if let Some(rule) = expired {
            log::warn!(
                "what was held at {} was not released within its limit; the rule {rule} ends",
                wait.point
            );
        }
    }

    /// Drops a wait.
    pub fn forget(&self, wait: Wait) {
        self.state
            .lock()
            .held
            .retain(|held| held.wait != wait.number);
    }

    /// Passes a point and waits there if a rule says so. The caller must hold no lock.
    pub fn pass(&self, point: Point, about: About, given_up: impl Fn() -> bool) {
        if let Some(wait) = self.arrive(point, about) {
            self.wait(wait, given_up);
        }
    }

    /// The rule of an expired hold ends too. Otherwise the next request would be held as long
    /// again.
    fn expire(&self, state: &mut State, rule: RuleId) -> Option<Rule> {
        let index = state.rules.iter().position(|other| other.id == rule)?;
        let ended = state.rules.remove(index);
        self.let_go(state, |held| held.rule == rule);
        Some(ended.rule)
    }

    /// Whether the item that passes a point is swapped with the next one.
    pub fn swaps(&self, point: Point, about: About) -> bool {
        let swap = |action| action == Action::Swap;
        self.happens(point, about, swap).is_some()
    }

    /// Whether the next copy fails.
    pub fn copy_fails(&self, point: Point, about: About) -> bool {
        let fails = |action| action == Action::CopyFailure;
        self.happens(point, about, fails).is_some()
    }

    /// The fault of the next reply, if any, and a number that is different for each.
    pub fn reply_mishap(&self, point: Point, about: About) -> Option<(ReplyMishap, u64)> {
        let wrong = |action| matches!(action, Action::Reply(_));
        match self.happens(point, about, wrong)? {
            (Action::Reply(mishap), occasion) => Some((mishap, occasion)),
            _ => None,
        }
    }

    /// The action of the first matching rule that happens at a point, and the number of the
    /// occasion.
    fn happens(
        &self,
        point: Point,
        about: About,
        such: impl Fn(Action) -> bool,
    ) -> Option<(Action, u64)> {
        if !self.concerns(point) {
            return None;
        }
        let mut state = self.state.lock();
        let (rule, id, occasion) = state.happens(point, &about, such)?;
        drop(state);
        let action = rule.action();
        log::info!("on purpose at {point}: rule {id} ({action}), occasion {occasion}");
        Some((action, occasion))
    }

    /// Adds a rule behind the others; if several apply, the first one happens.
    ///
    /// # Errors
    ///
    /// [`LatenessError::TooMany`].
    pub fn set(&self, rule: Rule) -> Result<RuleId, LatenessError> {
        let mut state = self.state.lock();
        if state.rules.len() >= MAX_RULES {
            return Err(LatenessError::TooMany);
        }
        let id = state.add(rule);
        self.note(&state);
        Ok(id)
    }

    /// Ends a rule, and releases what it holds.
    ///
    /// # Errors
    ///
    /// [`LatenessError::NoRule`], also for a hold that has ended at its limit.
    pub fn clear(&self, id: RuleId) -> Result<(), LatenessError> {
        let mut state = self.state.lock();
        let index = state.rules.iter().position(|rule| rule.id == id);
        state.rules.remove(index.ok_or(LatenessError::NoRule(id))?);
        self.let_go(&mut state, |held| held.rule == id);
        Ok(())
    }

    /// Ends all rules, releases everything, and returns how many rules there were.
    pub fn clear_all(&self) -> usize {
        let mut state = self.state.lock();
        let count = state.rules.len();
        state.rules.clear();
        self.let_go(&mut state, |_| true);
        count
    }

    /// Ends all holds at a point, or everywhere, and returns the number of items that were held
    /// there.
    pub fn release(&self, point: Option<Point>) -> usize {
        let mut state = self.state.lock();
        let here = |other: Point| point.is_none_or(|point| point == other);
        state.rules.retain(|in_force| {
            in_force.rule.action() != Action::Hold || !in_force.rule.points().all(here)
        });
        self.let_go(&mut state, |held| here(held.point))
    }

    /// Releases the first `most` items that are held at a point, and continues to hold later ones.
    /// Returns how many were released.
    pub fn step(&self, point: Point, most: usize) -> usize {
        let mut state = self.state.lock();
        let waiting = state
            .held
            .iter_mut()
            .filter(|held| held.point == point && !held.released);
        let stepped = waiting.take(most).fold(0, |count, held| {
            held.released = true;
            count + 1
        });
        self.changed.notify_all();
        stepped
    }

    fn let_go(&self, state: &mut State, which: impl Fn(&Held) -> bool) -> usize {
        let count = state.let_go(which);
        self.note(state);
        self.changed.notify_all();
        count
    }

    /// The rules in force, in their order.
    pub fn rules(&self) -> Vec<InForce> {
        self.state.lock().rules.clone()
    }

    /// The items that are held now, the oldest first.
    pub fn held(&self) -> Vec<Held> {
        let state = self.state.lock();
        let held = state.held.iter().filter(|held| !held.released);
        held.copied().collect()
    }

    /// Waits until an item is held at a point. Returns none if that takes too long, or if `goes_on`
    /// returns false: it checks now and then whether the client is still connected.
    pub fn wait_held(
        &self,
        point: Point,
        limit: Duration,
        goes_on: impl Fn() -> bool,
    ) -> Option<Held> {
        let until = Instant::now() + limit;
        let mut state = self.state.lock();
        loop {
            let here = |held: &&Held| held.point == point && !held.released;
            if let Some(held) = state.held.iter().find(here) {
                return Some(*held);
            }
            let next = until.min(Instant::now() + LOOK_AGAIN);
            let is_over = self.changed.wait_until(&mut state, next).timed_out() && next == until;
            if is_over || !goes_on() {
                return None;
            }
        }
    }

    /// Makes each waiting thread check again whether to continue. Call it after a reason to wait
    /// has gone; any lock may be held.
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::Relaxed) != 0 {
            // A thread that has checked and is not yet asleep holds the lock.
            drop(self.state.lock());
            self.changed.notify_all();
        }
    }

    /// A queue, or the engines, are stopped: no thread waits there from now on. All other waits end
    /// as well, for a stop may have to wait for these threads.
    pub fn stop(&self, queue: Option<Queue>) {
        let mut state = self.state.lock();
        state.stopped |= stop_bit(queue);
        state.ends += 1;
        self.changed.notify_all();
    }

    /// A queue, or the engines, run again, unless the connection has ended.
    pub fn start(&self, queue: Option<Queue>) {
        let mut state = self.state.lock();
        if state.stopped != ENDED {
            state.stopped &= !stop_bit(queue);
        }
    }

    /// A connection ends: no thread waits until the next one begins.
    pub fn end(&self, connection: u64) {
        let mut state = self.state.lock();
        // If this one took long to end, the next one may have begun.
        if state.connection == connection {
            state.stopped = ENDED;
            state.ends += 1;
            self.changed.notify_all();
        }
    }

    /// A connection begins: rules count from zero. Returns its number.
    pub fn begin(&self) -> u64 {
        let mut state = self.state.lock();
        state.connection += 1;
        state.ends += 1;
        self.changed.notify_all();
        state.stopped = 0;
        for in_force in &mut state.rules {
            in_force.occasions = 0;
            in_force.happened = 0;
        }
        self.note(&state);
        state.connection
    }

    /// Updates the bits of the points that rules concern.
    fn note(&self, state: &State) {
        let points = state
            .rules
            .iter()
            .flat_map(|in_force| in_force.rule.points());
        let concerned = points.fold(0, |concerned, point| concerned | bit(point));
        self.concerned.store(concerned, Ordering::Relaxed);
    }
}

impl State {
    fn add(&mut self, rule: Rule) -> RuleId {
        self.last_rule += 1;
        self.rules.push(InForce {
            id: self.last_rule,
            rule,
            occasions: 0,
            happened: 0,
        });
        self.last_rule
    }

    /// Counts an occasion with every rule that concerns it and has such an action. Returns the
    /// first rule that happens, and its number of the occasion.
    fn happens(
        &mut self,
        point: Point,
        about: &About,
        such: impl Fn(Action) -> bool,
    ) -> Option<(Rule, RuleId, u64)> {
        let mut first = None;
        for in_force in &mut self.rules {
            if !such(in_force.rule.action()) || !in_force.rule.concerns(point, about) {
                continue;
            }
            in_force.occasions += 1;
            let occasion = in_force.occasions;
            if first.is_none() && in_force.rule.happens(occasion, in_force.happened) {
                in_force.happened += 1;
                first = Some((in_force.rule.clone(), in_force.id, occasion));
            }
        }
        first
    }

    fn let_go(&mut self, which: impl Fn(&Held) -> bool) -> usize {
        let held = self.held.iter_mut();
        held.filter(|held| !held.released && which(held))
            .map(|held| held.released = true)
            .count()
    }
}

#[cfg(test)]
mod tests;
