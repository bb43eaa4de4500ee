//! The order in which subjects are tried, and with which rules.
//!
//! First each point alone is tried with each subject, so that every point and every subject has
//! been met early. Then come two points at a time, then several; and, if asked for, devices with a
//! queue that stalls. A seed decides everything: the same seed and shard make the same trials, and
//! the shards of one seed share the first two parts without trying anything twice. Of the results
//! it knows only how many tasks a subject has at work, which decides how often a device stalls for
//! it.

use std::collections::BTreeMap;
use std::fmt;

use fastrand::Rng;
use serde::{Deserialize, Serialize};

use crate::rule::{Point, Rule, Side, GATHERS};

/// The most rules of a trial.
const MOST: usize = 6;

/// The queue by which all tasks make requests to a device. It stalls in most of the trials with a
/// stall.
const SHARED: &str = "control";

/// A part of the search.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The findings of earlier searches.
    Kept,
    /// One point.
    Alone,
    /// Two points at a time.
    Pairs,
    /// Several random points.
    Random,
    /// A queue of a device stalls, once and for long, and many tasks are delayed side by side.
    Stalls,
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kept => "kept",
            Self::Alone => "alone",
            Self::Pairs => "pairs",
            Self::Random => "random",
            Self::Stalls => "stalls",
        })
    }
}

/// How many tasks a subject has at work, and which points they pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Crowd {
    /// The most at one time.
    pub tasks: u32,
    /// The names of the driver's points that were passed at least as often as there are tasks.
    pub passed: Vec<String>,
}

/// A subject and the rules with which it must be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// The part of the search.
    pub phase: Phase,
    /// The subject.
    pub subject: String,
    /// The rules.
    pub rules: Vec<Rule>,
}

/// A share of the search: the `index`-th of `count`, counted from zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Its index.
    pub index: usize,
    /// The number of shares; not zero.
    pub count: usize,
}

impl Shard {
    /// The whole search.
    pub const WHOLE: Self = Self { index: 0, count: 1 };
}

/// The trials of a search, in order.
#[derive(Debug)]
pub struct Schedule {
    points: Vec<Point>,
    subjects: Vec<String>,
    shard: Shard,
    /// How many trials of the first part have been considered.
    alone: usize,
    /// How many of the second part.
    pairs: usize,
    random: Rng,
    /// Random numbers for stalls alone, so that all other choices do not depend on what is known of
    /// subjects.
    stalls: Rng,
    /// What is known of each subject, and how many stalls it has had.
    crowds: BTreeMap<String, (Crowd, usize)>,
    seed: u64,
}

impl Schedule {
    /// The trials of these points and subjects.
    #[must_use]
    pub fn new(mut points: Vec<Point>, mut subjects: Vec<String>, seed: u64, shard: Shard) -> Self {
        let mut order = Rng::with_seed(seed);
        order.shuffle(&mut points);
        order.shuffle(&mut subjects);
        // Shards differ in their random choices, and agree on the order.
        let own = seed ^ (shard.index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self {
            points,
            subjects,
            shard,
            alone: 0,
            pairs: 0,
            random: Rng::with_seed(own),
            stalls: Rng::with_seed(own.rotate_left(32)),
            crowds: BTreeMap::new(),
            seed,
        }
    }

    /// Notes what was seen of a subject.
    pub fn has_crowd(&mut self, subject: &str, crowd: Crowd) {
        self.crowds.entry(subject.to_owned()).or_default().0 = crowd;
    }

    /// How many trials the first part has, in all shards together.
    #[must_use]
    pub fn singles(&self) -> usize {
        self.points.len() * self.subjects.len()
    }

    /// The next trial, from `phase` on; a stall only if that is asked for. `None` if there are
    /// neither points nor subjects.
    pub fn next(&mut self, phase: Phase) -> Option<Trial> {
        if self.points.is_empty() || self.subjects.is_empty() {
            return None;
        }
        if phase <= Phase::Alone {
            if let Some(trial) = self.next_alone() {
                return Some(trial);
            }
        }
        if phase <= Phase::Pairs {
            if let Some(trial) = self.next_pair() {
                return Some(trial);
            }
        }
        if phase == Phase::Stalls {
            if let Some(trial) = self.next_stall() {
                return Some(trial);
            }
        }
        Some(self.next_at_random())
    }

    /// Round by round: in each every point meets another subject.
    fn next_alone(&mut self) -> Option<Trial> {
        while self.alone < self.singles() {
            let number = self.alone;
            self.alone += 1;
            if number % self.shard.count != self.shard.index {
                continue;
            }
            let (round, place) = (number / self.points.len(), number % self.points.len());
            // A round goes on where the last one ended, so that a point meets all subjects after a
            // number of rounds.
            let subject = (place + round * self.stride()) % self.subjects.len();
            let rules = vec![self.rule(place)];
            return Some(self.trial(Phase::Alone, subject, rules));
        }
        None
    }

    /// The step between subjects from round to round: the number of points, or the next number that
    /// has no divisor in common with the number of subjects.
    fn stride(&self) -> usize {
        let subjects = self.subjects.len();
        (self.points.len()..)
            .find(|stride| greatest_common_divisor(*stride, subjects) == 1)
            .unwrap_or(1)
    }

    fn next_pair(&mut self) -> Option<Trial> {
        let points = self.points.len();
        let pairs = points * (points - 1) / 2;
        let all = pairs * self.subjects.len();
        while self.pairs < all {
            let number = self.pairs;
            self.pairs += 1;
            if number % self.shard.count != self.shard.index {
                continue;
            }
            // All pairs, each with one subject; then again with others.
            let (round, place) = (number / pairs, number % pairs);
            let (one, other) = pair(spread(place, pairs), points);
            let subject = spread(number, all) % self.subjects.len() + round;
            let rules = vec![self.rule(one), self.rule(other)];
            return Some(self.trial(Phase::Pairs, subject % self.subjects.len(), rules));
        }
        None
    }

    fn next_at_random(&mut self) -> Trial {
        let count = self.random.usize(1..=MOST.min(self.points.len()));
        let mut places: Vec<usize> = (0..self.points.len()).collect();
        self.random.shuffle(&mut places);
        let rules = places[..count]
            .iter()
            .map(|place| self.rule(*place))
            .collect();
        let subject = self.random.usize(..self.subjects.len());
        self.trial(Phase::Random, subject, rules)
    }

    /// Stalls one queue of the devices, or two: requests collected at the first come to the second
    /// all at once. Then tasks are delayed side by side at the next one of the points that they
    /// pass. `None` if no queue can stall.
    fn next_stall(&mut self) -> Option<Trial> {
        let stands = |queue| move |point: &Point| point.stands() && point.queue() == Some(queue);
        let is_other = |point: &Point| point.stands() && point.queue() != Some(SHARED);
        let gathers = match self.stalls.u8(..8) {
            0 => None,
            1 => any(&self.points, is_other, &mut self.stalls),
            _ => any(&self.points, stands(GATHERS), &mut self.stalls),
        };
        let shared = any(&self.points, stands(SHARED), &mut self.stalls);
        let other = any(&self.points, is_other, &mut self.stalls);
        let is_shared = gathers.is_some() || self.stalls.bool();
        let last = if is_shared {
            shared.or(other)
        } else {
            other.or(shared)
        }?;
        let mut rules = Vec::new();
        if let Some(gathers) = gathers {
            rules.push(Rule::stall(gathers, true, &mut self.stalls));
        }
        if gathers != Some(last) {
            rules.push(Rule::stall(last, gathers.is_some(), &mut self.stalls));
        }

        let subject = self.crowded();
        let (crowd, turn) = self
            .crowds
            .entry(self.subjects[subject].clone())
            .or_default();
        let is_passed =
            |point: &&Point| point.side == Side::Driver && crowd.passed.contains(&point.name);
        let passed: Vec<_> = self.points.iter().filter(is_passed).collect();
        // Once in each round no task is delayed.
        if let Some(point) = passed.get(*turn % (passed.len() + 1)) {
            rules.push(Rule::side_by_side(point, crowd.tasks, &mut self.stalls));
        }
        *turn += 1;
        Some(self.trial(Phase::Stalls, subject, rules))
    }

    /// Chooses a subject, more often the more tasks it has at work at one time. A task waits for
    /// what another task holds, so the weight is the number of pairs of tasks.
    fn crowded(&mut self) -> usize {
        let subjects = 0..self.subjects.len();
        let all: u32 = subjects.clone().map(|subject| self.weight(subject)).sum();
        let mut place = self.stalls.u32(..all);
        for subject in subjects {
            let weight = self.weight(subject);
            if place < weight {
                return subject;
            }
            place -= weight;
        }
        0
    }

    /// The weight of a subject. A subject that was not met counts as one with one task.
    fn weight(&self, subject: usize) -> u32 {
        let known = self.crowds.get(&self.subjects[subject]);
        let tasks = known.map_or(1, |(crowd, _)| crowd.tasks.max(1));
        tasks * tasks
    }

    fn rule(&mut self, place: usize) -> Rule {
        Rule::random(&self.points[place], &mut self.random)
    }

    fn trial(&self, phase: Phase, subject: usize, rules: Vec<Rule>) -> Trial {
        Trial {
            phase,
            subject: self.subjects[subject].clone(),
            rules,
        }
    }

    /// The seed of the search.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Leaves out a subject from now on, because it cannot run here.
    pub fn leave_out(&mut self, subject: &str) {
        self.subjects.retain(|other| other != subject);
    }
}

/// Any of the points that fulfil the condition.
fn any<'p>(
    points: &'p [Point],
    is_so: impl Fn(&Point) -> bool,
    random: &mut Rng,
) -> Option<&'p Point> {
    let such: Vec<_> = points.iter().filter(|point| is_so(point)).collect();
    random.choice(such)
}

fn greatest_common_divisor(one: usize, other: usize) -> usize {
    if other == 0 {
        one
    } else {
        greatest_common_divisor(other, one % other)
    }
}

/// The `number`-th pair of `count` things: (0,1), (0,2), ... (1,2), ...
fn pair(mut number: usize, count: usize) -> (usize, usize) {
    for one in 0..count {
        let partners = count - one - 1;
        if number < partners {
            return (one, one + 1 + number);
        }
        number -= partners;
    }
    (0, count - 1)
}

/// Permutes the numbers below `count` so that neighbours are far apart.
fn spread(number: usize, count: usize) -> usize {
    let step = (count * 5 / 8..)
        .find(|step| greatest_common_divisor(*step, count) == 1)
        .unwrap_or(1);
    number * step % count
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use proptest::prelude::*;

    fn schedule(points: usize, subjects: usize, seed: u64, shard: Shard) -> Schedule {
        let point = |number| {
            let (side, name) = match number % 4 {
                1 if number == 1 => (Side::Device, "fault.raised".to_owned()),
                1 => (Side::Device, format!("submit.point-{number}")),
                3 if number == 3 => (Side::Device, "control.taken".to_owned()),
                3 => (Side::Device, format!("control.point-{number}")),
                _ => (Side::Driver, format!("point-{number}")),
            };
            Point {
                side,
                name,
                swaps: false,
            }
        };
        let subjects = (0..subjects).map(|number| format!("subject-{number}"));
        Schedule::new(
            (0..points).map(point).collect(),
            subjects.collect(),
            seed,
            shard,
        )
    }

    fn drain(schedule: &mut Schedule, phase: Phase) -> Vec<Trial> {
        let mut trials = Vec::new();
        loop {
            let trial = schedule.next(phase).unwrap();
            if trial.phase > phase {
                return trials;
            }
            trials.push(trial);
        }
    }

    fn places(trial: &Trial) -> (String, Vec<String>) {
        let mut points: Vec<_> = trial
            .rules
            .iter()
            .map(|rule| rule.point.name.clone())
            .collect();
        points.sort();
        (trial.subject.clone(), points)
    }

    proptest! {
        #[test]
        fn every_point_meets_every_subject_once_alone(
            points in 1_usize..12, subjects in 1_usize..15, seed: u64, shards in 1_usize..5,
        ) {
            let mut met = BTreeSet::new();
            let mut count = 0;
            for index in 0..shards {
                let shard = Shard { index, count: shards };
                let mut schedule = schedule(points, subjects, seed, shard);
                for trial in drain(&mut schedule, Phase::Alone) {
                    prop_assert_eq!(trial.rules.len(), 1);
                    met.insert(places(&trial));
                    count += 1;
                }
            }
            prop_assert_eq!(met.len(), points * subjects);
            prop_assert_eq!(count, points * subjects);
        }

        #[test]
        fn every_pair_of_points_is_tried(
            points in 2_usize..8, subjects in 1_usize..8, seed: u64, shards in 1_usize..4,
        ) {
            let mut met = BTreeSet::new();
            for index in 0..shards {
                let shard = Shard { index, count: shards };
                let mut schedule = schedule(points, subjects, seed, shard);
                for trial in drain(&mut schedule, Phase::Pairs) {
                    prop_assert_eq!(trial.rules.len(), 2);
                    let (_, pair) = places(&trial);
                    prop_assert_ne!(&pair[0], &pair[1]);
                    met.insert(pair);
                }
            }
            prop_assert_eq!(met.len(), points * (points - 1) / 2);
        }

        #[test]
        fn the_same_seed_makes_the_same_trials(seed: u64, points in 1_usize..9) {
            let trials = |seed| {
                let mut schedule = schedule(points, 5, seed, Shard::WHOLE);
                let phases = [Phase::Alone, Phase::Pairs, Phase::Random, Phase::Stalls];
                let trials = phases.iter().cycle().take(60);
                trials.map(|phase| schedule.next(*phase).unwrap()).collect::<Vec<_>>()
            };
            prop_assert_eq!(trials(seed), trials(seed));
            prop_assert_ne!(trials(seed), trials(seed.wrapping_add(1)));
        }
    }

    #[test]
    fn the_first_round_meets_all_points_and_many_subjects() {
        let mut schedule = schedule(10, 40, 7, Shard::WHOLE);
        let first: Vec<_> = (0..40)
            .map(|_| schedule.next(Phase::Alone).unwrap())
            .collect();
        let points: BTreeSet<_> = first[..10].iter().map(|trial| places(trial).1).collect();
        assert_eq!(points.len(), 10);
        let subjects: BTreeSet<_> = first.iter().map(|trial| &trial.subject).collect();
        assert!(subjects.len() >= 30, "{}", subjects.len());
    }

    fn stalls(schedule: &mut Schedule, trials: usize) -> Vec<Trial> {
        let trials = (0..trials).map(|_| schedule.next(Phase::Stalls).unwrap());
        trials.collect()
    }

    fn crowd(tasks: u32, passed: &[&str]) -> Crowd {
        Crowd {
            tasks,
            passed: passed.iter().map(|&name| name.to_owned()).collect(),
        }
    }

    #[test]
    fn one_queue_stands_still_or_two_mostly_the_shared_one() {
        let mut schedule = schedule(8, 5, 7, Shard::WHOLE);
        let trials = stalls(&mut schedule, 400);
        let mut numbers = BTreeSet::new();
        let mut shared = 0;
        for trial in &trials {
            let points = trial.rules.iter().map(|rule| &rule.point);
            let queues: Vec<_> = points.filter_map(Point::queue).collect();
            let different: BTreeSet<_> = queues.iter().collect();
            assert_eq!(different.len(), queues.len());
            // Collected requests go on to the shared queue.
            assert!(queues.len() == 1 || queues[1] == SHARED);
            shared += usize::from(queues.contains(&SHARED));
            numbers.insert(queues.len());
        }
        assert_eq!(numbers, BTreeSet::from([1, 2]));
        assert!(
            shared > trials.len() / 4 * 3,
            "{shared} of {}",
            trials.len()
        );
        assert!(shared < trials.len());
    }

    #[test]
    fn a_device_stands_still_more_often_for_more_tasks() {
        let mut schedule = schedule(8, 20, 7, Shard::WHOLE);
        schedule.has_crowd("subject-4", crowd(4, &["point-0", "point-4"]));
        let trials = stalls(&mut schedule, 400);
        let crowded = |trial: &&Trial| trial.subject == "subject-4";
        let count = trials.iter().filter(crowded).count();
        assert!((160..250).contains(&count), "{count}");
        let subjects: BTreeSet<_> = trials.iter().map(|trial| &trial.subject).collect();
        assert_eq!(subjects.len(), 20);
        // The tasks are delayed at one of their points after the other, and then at none.
        let late = trials.iter().filter(crowded).map(|trial| {
            let mut late = trial.rules.iter();
            let late = late.find(|rule| rule.point.side == Side::Driver)?;
            assert!(late.text.ends_with(",count=4"), "{}", late.text);
            Some(late.point.name.as_str())
        });
        let late: Vec<_> = late.collect();
        for round in late.chunks_exact(3) {
            let round: BTreeSet<_> = round.iter().collect();
            assert_eq!(round.len(), 3);
            assert!(round.contains(&None) && round.contains(&Some("point-4")));
        }
    }

    #[test]
    fn what_is_known_of_subjects_changes_nothing_but_stalls() {
        let others = |knows: bool| {
            let mut schedule = schedule(6, 9, 7, Shard::WHOLE);
            let phases = [Phase::Alone, Phase::Stalls, Phase::Pairs, Phase::Random];
            let trials = phases.iter().cycle().take(90).map(|phase| {
                let trial = schedule.next(*phase).unwrap();
                if knows {
                    schedule.has_crowd(&trial.subject, crowd(200, &["point-0"]));
                }
                trial
            });
            let other = |trial: &Trial| trial.phase != Phase::Stalls;
            trials.filter(other).collect::<Vec<_>>()
        };
        assert_eq!(others(false), others(true));
    }

    #[test]
    fn without_a_device_nothing_stands_still() {
        let mut schedule = schedule(1, 3, 7, Shard::WHOLE);
        let trials = stalls(&mut schedule, 20);
        assert!(trials.iter().all(|trial| trial.phase == Phase::Random));
    }

    #[test]
    fn a_subject_that_is_left_out_does_not_come_back() {
        let mut schedule = schedule(4, 3, 7, Shard::WHOLE);
        schedule.leave_out("subject-1");
        for phase in [Phase::Alone, Phase::Pairs, Phase::Random, Phase::Stalls] {
            for _ in 0..20 {
                assert_ne!(schedule.next(phase).unwrap().subject, "subject-1");
            }
        }
        schedule.leave_out("subject-0");
        schedule.leave_out("subject-2");
        assert_eq!(schedule.next(Phase::Alone), None);
    }
}
