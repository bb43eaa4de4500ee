//! Points, and rules about them.
//!
//! A rule is written in the grammar that the device and the driver share. It knows which delays are
//! worth trying, but not their effect.

use std::fmt;
use std::time::Duration;

use anyhow::{bail, Context, Result};
use fastrand::Rng;
use serde::{Deserialize, Serialize};

/// The longest delay of one rule in all, in microseconds. All rules of a trial, at the points of
/// one request, delay it by less than the time after which the driver counts a change that waits
/// for migrating pages as hurried.
const LATENESS: u32 = 300_000;

/// How long a queue of a device stalls, in milliseconds. The driver lets a change go on after it
/// has waited 5 s for migrating pages, ends a fault that it could not look into for 6 s, and gives
/// up a device that has not answered for 30 s. A stall, together with other delays, is shorter.
const STALL: std::ops::Range<u32> = 2_500..3_500;

/// The number of the pass at which a queue stalls lies between two powers of two. Each power below
/// this one is equally likely: some programs ask a device for little, some for much.
const POWERS: u32 = 9;

/// The same for a stall at one of the first passes.
const EARLY: u32 = 2;

/// How long a task is delayed side by side with others, in milliseconds. This is long enough for
/// the others to reach the same point, and all together cost little more than one.
const SIDE_BY_SIDE: std::ops::Range<u32> = 700..900;

/// The most tasks that are delayed side by side. If they came one by one, they would use up the
/// minute that the driver's rules may delay.
const MOST_TASKS: u32 = 64;

/// The queue that, while it is stalled, collects what tasks wait for.
pub const GATHERS: &str = "fault";

/// The points where queues can stall: all requests of a queue pass them. Each comes with the
/// operations that tasks at work request there, as far as known, with usual ones repeated. Tasks
/// begin and end with other requests.
const STANDS: [(&str, &[&str]); 10] = [
    ("control.taken", &["map", "map", "answer", "unmap"]),
    ("control.executed", &["map", "map", "answer", "unmap"]),
    ("control.answered", &["map", "map", "answer", "unmap"]),
    ("dma.taken", &["copy", "copy", "fetch"]),
    ("dma.executed", &["copy", "copy", "fetch"]),
    ("submit.taken", &[]),
    ("submit.ended", &[]),
    ("fault.raised", &[]),
    ("fault.reported", &[]),
    ("engine.step", &[]),
];

/// The side that is late.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// The daemon of every device.
    Device,
    /// The guest's driver.
    Driver,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Device => "device",
            Self::Driver => "driver",
        })
    }
}

/// A moment at which one side can be late.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Point {
    /// The side that passes it.
    pub side: Side,
    /// Its name in a rule.
    pub name: String,
    /// Whether a request that passes it may change places with the next one.
    pub swaps: bool,
}

impl Point {
    /// The queue of a device, by its name, or the engines whose requests pass it.
    #[must_use]
    pub fn queue(&self) -> Option<&str> {
        let (queue, _) = self.name.split_once('.')?;
        (self.side == Side::Device).then_some(queue)
    }

    /// Whether a queue can stall there.
    #[must_use]
    pub fn stands(&self) -> bool {
        let is_device = self.side == Side::Device;
        is_device && STANDS.iter().any(|(name, _)| *name == self.name)
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.side, self.name)
    }
}

impl From<Point> for String {
    fn from(point: Point) -> Self {
        point.to_string()
    }
}

impl TryFrom<String> for Point {
    type Error = anyhow::Error;

    fn try_from(text: String) -> Result<Self> {
        let (side, name) = text.split_once(':').context("a point is SIDE:NAME")?;
        let side = match side {
            "device" => Side::Device,
            "driver" => Side::Driver,
            other => bail!("there is no side {other}"),
        };
        // A rule that was read back is not generated again, so it does not matter whether the point
        // swaps.
        Ok(Self {
            side,
            name: name.to_owned(),
            swaps: false,
        })
    }
}

/// What happens at a point, and how often.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rule {
    /// The point.
    pub point: Point,
    /// The rule in the grammar of its side.
    pub text: String,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.point.side, self.text)
    }
}

impl Rule {
    /// A rule for a point, of a shape and with a seed that `random` chooses.
    #[must_use]
    pub fn random(point: &Point, random: &mut Rng) -> Self {
        let name = &point.name;
        // Names begin with the queue or engine.
        let is_step = name.starts_with("engine");
        let seed = random.u32(1..);
        let delay = |least: u32, most: u32, rest: &str| {
            let count = LATENESS / most;
            format!("delay={least}us..{most}us@{name},count={count}{rest},seed={seed}")
        };
        let text = match random.u8(0..if point.swaps { 10 } else { 8 }) {
            // An engine makes a step every few microseconds.
            _ if is_step => delay(200, 3_000, ",probability=0.05"),
            // A little everywhere.
            0..3 => delay(50, 1_000, ",probability=0.7"),
            // Long enough for other requests to overtake a late one.
            3..6 => delay(1_000, 12_000, ",probability=0.5"),
            // Rarely, and for long.
            6 => delay(20_000, 60_000, ",probability=0.2"),
            // Only the first ones.
            7 => delay(20_000, 20_000, ""),
            _ => format!("swap@{name},every=2,count=200"),
        };
        Self {
            point: point.clone(),
            text,
        }
    }

    /// A rule that stalls a device's point once: at one of the first passes if `is_early`.
    #[must_use]
    pub fn stall(point: &Point, is_early: bool, random: &mut Rng) -> Self {
        let name = &point.name;
        let delay = random.u32(STALL);
        let power = random.u32(0..if is_early { EARLY } else { POWERS });
        let nth = random.u32(1 << power..2 << power);
        let asked = STANDS.iter().find(|(other, _)| other == name);
        let asked = asked.and_then(|(_, all)| random.choice(all.iter()));
        let operation = asked.map_or(String::new(), |name| format!(",operation={name}"));
        Self {
            point: point.clone(),
            text: format!("delay={delay}ms@{name},nth={nth}{operation}"),
        }
    }

    /// A rule that delays this many tasks side by side at a point of the driver.
    #[must_use]
    pub fn side_by_side(point: &Point, tasks: u32, random: &mut Rng) -> Self {
        let name = &point.name;
        let delay = random.u32(SIDE_BY_SIDE);
        let count = tasks.clamp(1, MOST_TASKS);
        Self {
            point: point.clone(),
            text: format!("delay={delay}ms@{name},count={count}"),
        }
    }

    /// The longest time that it can delay a program: the longest delay, as often as it may happen.
    /// `None` for a rule of another kind, or a rule written by hand without a limit.
    #[must_use]
    pub fn most(&self) -> Option<Duration> {
        let mut parts = self.text.split(',');
        let (delay, _) = parts.next()?.strip_prefix("delay=")?.split_once('@')?;
        let (_, most) = delay.split_once("..").unwrap_or(("", delay));
        let count = parts.find_map(|part| match part.split_once('=')? {
            ("nth", _) => Some(1),
            ("count", count) => count.parse().ok(),
            _ => None,
        })?;
        time(most)?.checked_mul(count)
    }
}

/// A time as rules write it.
fn time(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let number = digits.parse().ok()?;
    match &text[digits.len()..] {
        "us" => Some(Duration::from_micros(number)),
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_hmm_spec::points;
    use virtio_hmm_spec::uapi::late::{LatePoint, LateRule, MAX_DELAY, MAX_LATENESS};
    use virtio_hmm_spec::wire::command::Request;
    use virtio_hmm_spec::wire::Values as _;

    fn driver(name: &str) -> Point {
        Point {
            side: Side::Driver,
            name: name.to_owned(),
            swaps: false,
        }
    }

    #[test]
    fn every_rule_for_the_driver_is_one_that_it_takes_and_ends() {
        let mut random = Rng::with_seed(1);
        for point in LatePoint::all() {
            for _ in 0..50 {
                let rule = Rule::random(&driver(point.word()), &mut random);
                let read = LateRule::parse(&rule.text).expect(&rule.text);
                assert_eq!(read.point, point);
                let together = u64::from(read.count.expect("an end")) * u64::from(read.most);
                assert!(together <= u64::from(LATENESS), "{}", rule.text);
                assert!(together > u64::from(LATENESS) / 2, "{}", rule.text);
            }
        }
    }

    #[test]
    fn only_what_may_swap_is_swapped() {
        let mut random = Rng::with_seed(2);
        let device = |swaps| Point {
            side: Side::Device,
            name: "dma.taken".to_owned(),
            swaps,
        };
        let mut has_swap = |swaps| {
            (0..200).any(|_| {
                Rule::random(&device(swaps), &mut random)
                    .text
                    .starts_with("swap@")
            })
        };
        assert!(has_swap(true));
        assert!(!has_swap(false));
    }

    fn device(name: &str) -> Point {
        Point {
            side: Side::Device,
            name: name.to_owned(),
            swaps: false,
        }
    }

    #[test]
    fn a_queue_stands_still_once_and_at_any_moment() {
        let mut random = Rng::with_seed(4);
        let mut numbers = Vec::new();
        for point in points::Point::ALL {
            for _ in 0..50 {
                let rule = Rule::stall(&device(point.name()), false, &mut random);
                let milliseconds = rule.most().expect(&rule.text).as_millis();
                let milliseconds = u32::try_from(milliseconds).unwrap();
                assert!(STALL.contains(&milliseconds), "{}", rule.text);
                let (_, nth) = rule.text.split_once(",nth=").expect(&rule.text);
                let number = nth.split(',').next().unwrap();
                numbers.push(number.parse::<u32>().expect(&rule.text));
            }
        }
        assert!(numbers.contains(&1));
        let share = |few: u32| numbers.iter().filter(|number| **number <= few).count();
        assert!(share(15) > numbers.len() / 3, "{}", share(15));
        assert!(share(127) < numbers.len() * 5 / 6, "{}", share(127));
    }

    #[test]
    fn what_is_asked_for_is_a_request_at_a_point() {
        for (name, all) in STANDS {
            assert!(points::Point::ALL.iter().any(|point| point.name() == name));
            for asked in all {
                let is_it = |(name, _): &(&str, _)| name.eq_ignore_ascii_case(asked);
                assert!(Request::VALUES.iter().any(is_it), "{asked}");
            }
            let mut random = Rng::with_seed(5);
            let rule = Rule::stall(&device(name), true, &mut random);
            assert_eq!(rule.text.contains(",operation="), !all.is_empty());
            assert!((1..4).any(|nth| rule.text.contains(&format!(",nth={nth}"))));
        }
        assert!(device("control.taken").stands() && !device("control.seen").stands());
        assert!(!driver("lock").stands());
    }

    #[test]
    fn tasks_that_are_late_side_by_side_are_so_many_at_most() {
        let mut random = Rng::with_seed(6);
        let at = |point: LatePoint| driver(point.word());
        for point in LatePoint::all() {
            for (tasks, count) in [(0, 1), (1, 1), (40, 40), (500, MOST_TASKS)] {
                let rule = Rule::side_by_side(&at(point), tasks, &mut random);
                let read = LateRule::parse(&rule.text).expect(&rule.text);
                assert_eq!((read.point, read.count), (point, Some(count)));
            }
        }
        const { assert!(SIDE_BY_SIDE.end * 1000 <= MAX_DELAY) };
        let all = u64::from(SIDE_BY_SIDE.end * 1000) * u64::from(MOST_TASKS);
        assert!(all <= MAX_LATENESS);
    }

    #[test]
    fn the_most_that_a_rule_delays_is_known_if_it_ends() {
        let most = |text: &str| {
            let point = driver("lock");
            let text = text.to_owned();
            Rule { point, text }.most()
        };
        let milliseconds = |number| Some(Duration::from_millis(number));
        assert_eq!(
            most("delay=3s@lock,nth=7,operation=map"),
            milliseconds(3000)
        );
        assert_eq!(most("delay=50us..2ms@lock,seed=3,count=4"), milliseconds(8));
        assert_eq!(most("delay=2ms@lock"), None);
        assert_eq!(most("swap@lock,every=2,count=200"), None);
    }

    #[test]
    fn a_rule_is_read_as_it_was_written() {
        let rule = Rule::random(&driver("lock"), &mut Rng::with_seed(3));
        let text = serde_json::to_string(&rule).unwrap();
        assert!(text.contains("driver:lock"), "{text}");
        assert_eq!(serde_json::from_str::<Rule>(&text).unwrap(), rule);
        assert!(serde_json::from_str::<Rule>(r#"{"point":"lock","text":""}"#).is_err());
    }
}
