//! Rules: what happens at which point, and how often.
//!
//! ```text
//! ACTION[@POINT][,KEY=VALUE]…
//! ```
//!
//! The command line and the control socket share this grammar. A rule is printed in the form in
//! which it is read, so that one device's rules can be given to another.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::time::Duration;

use virtio_hmm_spec::points::Point;
use virtio_hmm_spec::wire::command::Request;
use virtio_hmm_spec::wire::dma::Kind;
use virtio_hmm_spec::wire::operation::Operation;
use virtio_hmm_spec::wire::Values;

/// The default limit of a hold: shorter than a driver waits for a reply before it gives the device
/// up.
pub const DEFAULT_LIMIT: Duration = Duration::from_secs(10);

/// The longest time that a rule may name.
pub const LONGEST: Duration = Duration::from_secs(600);

/// Faults of a reply on its way to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyMishap {
    /// The chain is never returned.
    Lost,
    /// The chain is returned as if half of the reply had been written.
    Short,
    /// The chain is returned as if more had been written than fits.
    Long,
    /// Bits of the reply are wrong.
    Garbled,
    /// The status of the reply is one that there is not.
    UnknownStatus,
    /// The first result of a job is wrong, by one bit.
    WrongResult,
    /// The chain is returned twice.
    Repeated,
    /// Another chain is returned instead; its head may not even be in use.
    Stray,
}

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The device continues after this time, or after a time between these.
    Delay(Duration, Duration),
    /// The device continues when it is told to.
    Hold,
    /// The next one goes first, if there is one.
    Swap,
    /// A copy is not made.
    CopyFailure,
    /// A reply is wrong.
    Reply(ReplyMishap),
}

const DELAY: &str = "delay";

/// The actions that have no value, with their names.
const ACTIONS: [(&str, Action); 11] = [
    ("hold", Action::Hold),
    ("swap", Action::Swap),
    ("copy-failure", Action::CopyFailure),
    ("lost-reply", Action::Reply(ReplyMishap::Lost)),
    ("short-reply", Action::Reply(ReplyMishap::Short)),
    ("long-reply", Action::Reply(ReplyMishap::Long)),
    ("garbled-reply", Action::Reply(ReplyMishap::Garbled)),
    ("unknown-status", Action::Reply(ReplyMishap::UnknownStatus)),
    ("wrong-result", Action::Reply(ReplyMishap::WrongResult)),
    ("repeated-reply", Action::Reply(ReplyMishap::Repeated)),
    ("stray-reply", Action::Reply(ReplyMishap::Stray)),
];

impl Action {
    /// Whether it can happen at a point.
    pub fn is_possible_at(self, point: Point) -> bool {
        use Point::*;
        match self {
            Self::Delay(..) | Self::Hold => true,
            Self::Swap => point.order_is_free(),
            Self::CopyFailure => matches!(point, ControlItem | DmaItem),
            // A record of a fault has no status.
            Self::Reply(ReplyMishap::UnknownStatus) => {
                matches!(point, ControlExecuted | DmaExecuted | SubmitEnded)
            }
            Self::Reply(ReplyMishap::WrongResult) => point == SubmitEnded,
            Self::Reply(_) => matches!(
                point,
                ControlExecuted | DmaExecuted | SubmitEnded | FaultReported
            ),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Delay(from, to) if from == to => write!(f, "{DELAY}={}", Time(*from)),
            Self::Delay(from, to) => write!(f, "{DELAY}={}..{}", Time(*from), Time(*to)),
            action => {
                let found = ACTIONS.iter().find(|(_, other)| other == action);
                f.write_str(found.map_or("", |(name, _)| name))
            }
        }
    }
}

/// What a rule can match of a request that passes a point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct About {
    /// The space that it is about.
    pub space: Option<u32>,
    /// The operation, as the specification writes it.
    pub operation: Option<&'static str>,
}

/// Where a rule applies.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// Wherever its action is possible.
    Everywhere,
    /// The same on one queue, or on the engines.
    Group(&'static str),
    /// At one point.
    Point(Point),
}

/// What happens at which point, and how often.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    action: Action,
    place: Place,
    /// Only at every N-th occasion.
    every: NonZeroU64,
    /// Only at this occasion.
    nth: Option<NonZeroU64>,
    /// At most this many times.
    count: Option<u64>,
    /// With this probability.
    probability: Option<f64>,
    /// The seed that makes chances repeatable.
    seed: Option<u64>,
    /// How long a hold may last.
    limit: Option<Duration>,
    /// Only for requests about this space.
    space: Option<u32>,
    /// Only for this operation.
    operation: Option<String>,
}

/// Why a rule is invalid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// There is no such action.
    #[error("unknown action {0:?}; there are {list}", list = actions())]
    Action(String),
    /// An action lacks its value, or has a value that it does not take.
    #[error("{0:?} is not complete; write delay=TIME or delay=TIME..TIME, such as delay=1ms..5ms, and no value for other actions")]
    Value(String),
    /// There is no such point.
    #[error("unknown point {0:?}; docs/lateness.md and `vhost-device-hmm ctl PATH points` list them, and control, dma, submit, fault and engine each stand for all of theirs")]
    Point(String),
    /// The action is not possible at this point.
    #[error("{0} cannot happen at {1}; it can at {list}", list = possible(.0))]
    Impossible(Box<Action>, String),
    /// A time is invalid.
    #[error("{0:?} is not a time up to 10 minutes, such as 200us, 5ms or 2s")]
    Time(String),
    /// The first time of a range is the later one.
    #[error("the range {0:?} is empty; write the shorter time first")]
    Range(String),
    /// A part is not a key and a value.
    #[error("{0:?} is not KEY=VALUE; the keys are every, nth, count, probability, seed, limit, space and operation")]
    Key(String),
    /// A key is there twice.
    #[error("{0:?} is given twice; keep one of them")]
    Twice(String),
    /// A number is invalid.
    #[error("{key}={value:?} is not {expected}")]
    Number {
        /// The key.
        key: &'static str,
        /// The value that was given.
        value: String,
        /// The values that it takes.
        expected: &'static str,
    },
    /// There is no such operation.
    #[error("unknown operation {0:?}; use the name of a request (map, unmap, fetch…), of an item (to-device, discard…) or of a job (fill, list-walk…)")]
    Operation(String),
    /// Two keys contradict each other.
    #[error("{0}")]
    Contradiction(&'static str),
}

fn actions() -> String {
    let names = ACTIONS.iter().map(|(name, _)| *name);
    let all: Vec<&str> = std::iter::once("delay=TIME").chain(names).collect();
    all.join(", ")
}

fn possible(action: &Action) -> String {
    let points = Point::ALL
        .iter()
        .filter(|point| action.is_possible_at(**point));
    let names: Vec<&str> = points.map(|point| point.name()).collect();
    names.join(", ")
}

impl Rule {
    /// A hold at one point.
    pub fn hold(point: Point, limit: Option<Duration>) -> Self {
        Self {
            action: Action::Hold,
            place: Place::Point(point),
            every: NonZeroU64::MIN,
            nth: None,
            count: None,
            probability: None,
            seed: None,
            limit,
            space: None,
            operation: None,
        }
    }

    /// What happens.
    pub fn action(&self) -> Action {
        self.action
    }

    /// The longest duration of a hold.
    pub fn limit(&self) -> Duration {
        self.limit.unwrap_or(DEFAULT_LIMIT)
    }

    /// The points where it applies.
    pub fn points(&self) -> impl Iterator<Item = Point> + '_ {
        let points = Point::ALL.iter().copied();
        points.filter(|point| self.is_at(*point))
    }

    fn is_at(&self, point: Point) -> bool {
        let here = match self.place {
            Place::Everywhere => true,
            Place::Group(group) => group == point.group(),
            Place::Point(only) => only == point,
        };
        here && self.action.is_possible_at(point)
            && (self.space.is_none() || knows_space(point))
            && (self.operation.is_none() || knows_operation(point))
    }

    /// Whether this rule counts an occasion at a point.
    pub fn concerns(&self, point: Point, about: &About) -> bool {
        self.is_at(point)
            && self.space.is_none_or(|space| about.space == Some(space))
            && self.operation.as_ref().is_none_or(|wanted| {
                about
                    .operation
                    .is_some_and(|operation| kebab(operation) == *wanted)
            })
    }

    /// Whether it happens at an occasion with this number, if it has happened `before` times
    /// already.
    pub fn happens(&self, occasion: u64, before: u64) -> bool {
        if self.is_spent(before) {
            return false;
        }
        let turn = match self.nth {
            Some(nth) => occasion == nth.get(),
            None => occasion % self.every.get() == 0,
        };
        turn && self
            .probability
            .is_none_or(|probability| self.chance(occasion, 0) < probability)
    }

    /// Whether it can no longer happen.
    pub fn is_spent(&self, before: u64) -> bool {
        let most = if self.nth.is_some() {
            Some(1)
        } else {
            self.count
        };
        most.is_some_and(|most| before >= most)
    }

    /// The length of a delay at an occasion.
    pub fn delay(&self, occasion: u64) -> Duration {
        match self.action {
            Action::Delay(from, to) => from + (to - from).mul_f64(self.chance(occasion, 1)),
            _ => Duration::ZERO,
        }
    }

    /// A number from 0 to below 1 that depends only on the seed and the occasion.
    fn chance(&self, occasion: u64, what: u64) -> f64 {
        let seed = self.seed.unwrap_or(0);
        let mut random = SplitMix(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ occasion << 1 ^ what);
        // The upper half has enough bits, and fits exactly.
        f64::from(u32::try_from(random.next() >> 32).unwrap_or(0)) / (f64::from(u32::MAX) + 1.0)
    }
}

/// Whether the space of a request is known at a point.
fn knows_space(point: Point) -> bool {
    use Point::*;
    !matches!(
        point,
        ControlSeen
            | ControlPublished
            | DmaSeen
            | DmaPublished
            | ControlInit
            | ControlItem
            | DmaItem
            | SubmitSeen
            | SubmitPublished
            | FaultRaised
            | FaultTaken
            | FaultReported
            | FaultFilled
            | FaultPublished
    )
}

/// Whether the operation of a request is known at a point.
fn knows_operation(point: Point) -> bool {
    use Point::*;
    let item = matches!(point, ControlInit | ControlItem | DmaItem);
    item || (knows_space(point) && !matches!(point, FaultRetried | EngineStep))
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let mut parts = text.split(',').map(str::trim);
        let head = parts.next().unwrap_or_default();
        let (action, place) = match head.split_once('@') {
            Some((action, place)) => (action, Some(place)),
            None => (head, None),
        };
        let mut rule = Self {
            action: parse_action(action)?,
            place: place.map_or(Ok(Place::Everywhere), parse_place)?,
            ..Self::hold(Point::ControlSeen, None)
        };
        let mut seen: Vec<&str> = Vec::new();
        for part in parts {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| RuleError::Key(part.to_owned()))?;
            if seen.contains(&key) {
                return Err(RuleError::Twice(key.to_owned()));
            }
            seen.push(key);
            rule.set(key, value)?;
        }
        rule.check(place.unwrap_or("any point"))?;
        Ok(rule)
    }
}

impl Rule {
    fn set(&mut self, key: &str, value: &str) -> Result<(), RuleError> {
        match key {
            "every" => self.every = number("every", value, "a number from 1 on")?,
            "nth" => self.nth = Some(number("nth", value, "a number from 1 on")?),
            "count" => {
                let count: NonZeroU64 = number("count", value, "a number from 1 on")?;
                self.count = Some(count.get());
            }
            "probability" => {
                let expected = "a probability above 0 and up to 1";
                let probability: f64 = number("probability", value, expected)?;
                if !(probability > 0.0 && probability <= 1.0) {
                    return Err(wrong_number("probability", value, expected));
                }
                self.probability = Some(probability);
            }
            "seed" => self.seed = Some(number("seed", value, "a number of 64 bits")?),
            "limit" => self.limit = Some(parse_time(value)?),
            "space" => self.space = Some(number("space", value, "the number of a space")?),
            "operation" => {
                if !is_operation(value) {
                    return Err(RuleError::Operation(value.to_owned()));
                }
                self.operation = Some(value.to_owned());
            }
            _ => return Err(RuleError::Key(format!("{key}={value}"))),
        }
        Ok(())
    }

    fn check(&self, place: &str) -> Result<(), RuleError> {
        let contradiction = |text| Err(RuleError::Contradiction(text));
        if self.nth.is_some() && (self.every != NonZeroU64::MIN || self.count.is_some()) {
            return contradiction("nth names one occasion: leave out every and count");
        }
        if self.limit.is_some() && self.action != Action::Hold {
            return contradiction("limit is how long a hold may last: only hold takes it");
        }
        if self.points().next().is_some() {
            return Ok(());
        }
        if self.space.is_some() || self.operation.is_some() {
            return contradiction("space and operation are not known at such a point; choose one after a request has been taken, such as control.taken");
        }
        Err(RuleError::Impossible(
            Box::new(self.action),
            place.to_owned(),
        ))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.action)?;
        match &self.place {
            Place::Everywhere => {}
            Place::Group(group) => write!(f, "@{group}")?,
            Place::Point(point) => write!(f, "@{point}")?,
        }
        if self.every != NonZeroU64::MIN {
            write!(f, ",every={}", self.every)?;
        }
        if let Some(nth) = self.nth {
            write!(f, ",nth={nth}")?;
        }
        if let Some(count) = self.count {
            write!(f, ",count={count}")?;
        }
        if let Some(probability) = self.probability {
            write!(f, ",probability={probability}")?;
        }
        if let Some(seed) = self.seed {
            write!(f, ",seed={seed}")?;
        }
        if let Some(limit) = self.limit {
            write!(f, ",limit={}", Time(limit))?;
        }
        if let Some(space) = self.space {
            write!(f, ",space={space}")?;
        }
        if let Some(operation) = &self.operation {
            write!(f, ",operation={operation}")?;
        }
        Ok(())
    }
}

fn parse_action(text: &str) -> Result<Action, RuleError> {
    let (name, value) = match text.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (text, None),
    };
    let incomplete = || RuleError::Value(text.to_owned());
    if name == DELAY {
        let value = value.ok_or_else(incomplete)?;
        let (from, to) = match value.split_once("..") {
            Some((from, to)) => (parse_time(from)?, parse_time(to)?),
            None => (parse_time(value)?, parse_time(value)?),
        };
        if from > to {
            return Err(RuleError::Range(value.to_owned()));
        }
        return Ok(Action::Delay(from, to));
    }
    let found = ACTIONS.iter().find(|(action, _)| *action == name);
    match (found, value) {
        (None, _) => Err(RuleError::Action(name.to_owned())),
        (Some(_), Some(_)) => Err(incomplete()),
        (Some((_, action)), None) => Ok(*action),
    }
}

fn parse_place(text: &str) -> Result<Place, RuleError> {
    if let Some(point) = Point::from_name(text) {
        return Ok(Place::Point(point));
    }
    let mut groups = Point::ALL.iter().map(|point| point.group());
    let group = groups.find(|group| *group == text);
    group
        .map(Place::Group)
        .ok_or_else(|| RuleError::Point(text.to_owned()))
}

fn number<T: FromStr>(
    key: &'static str,
    value: &str,
    expected: &'static str,
) -> Result<T, RuleError> {
    value
        .parse()
        .map_err(|_| wrong_number(key, value, expected))
}

fn wrong_number(key: &'static str, value: &str, expected: &'static str) -> RuleError {
    RuleError::Number {
        key,
        value: value.to_owned(),
        expected,
    }
}

/// The units of times, in nanoseconds, the largest first.
const UNITS: [(&str, u64); 4] = [
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

/// Parses a time such as `5ms`.
///
/// # Errors
///
/// [`RuleError::Time`] when it is not a time, or longer than any rule may last.
pub fn parse_time(text: &str) -> Result<Duration, RuleError> {
    let wrong = || RuleError::Time(text.to_owned());
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = text.strip_prefix(digits).unwrap_or_default();
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    let in_nanoseconds = match unit {
        // Zero needs no unit.
        "" if number == 0 => 0,
        _ => {
            let found = UNITS.iter().find(|(name, _)| *name == unit);
            found.ok_or_else(wrong)?.1
        }
    };
    let time = number.checked_mul(in_nanoseconds).map(Duration::from_nanos);
    time.filter(|time| *time <= LONGEST).ok_or_else(wrong)
}

/// A time in the form that [`parse_time`] reads.
struct Time(Duration);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanoseconds = u64::try_from(self.0.as_nanos()).unwrap_or(u64::MAX);
        let fits = |(_, unit): &&(&str, u64)| nanoseconds % unit == 0;
        match UNITS.iter().find(fits) {
            _ if nanoseconds == 0 => f.write_str("0ms"),
            Some((name, unit)) => write!(f, "{}{name}", nanoseconds / unit),
            None => Ok(()),
        }
    }
}

/// A name of the specification in the form that rules use: `ListWalk` is `list-walk`.
pub fn kebab(name: &str) -> String {
    let mut kebab = String::with_capacity(name.len() + 4);
    for character in name.chars() {
        if character.is_ascii_uppercase() && !kebab.is_empty() {
            kebab.push('-');
        }
        kebab.push(character.to_ascii_lowercase());
    }
    kebab
}

fn is_operation(text: &str) -> bool {
    let requests = Request::VALUES.iter().chain(Kind::VALUES);
    let names = requests.map(|(name, _)| *name);
    names
        .chain(
            Operation::DESCRIPTIONS
                .iter()
                .map(|operation| operation.name),
        )
        .any(|name| kebab(name) == text)
}

/// A pseudorandom generator (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014).
pub(super) struct SplitMix(pub(super) u64);

impl SplitMix {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
