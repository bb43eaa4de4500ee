//! Lateness on demand: the moments at which the driver can be told to be late, and the rules for
//! that.
//!
//! A rule is text, as it is written to `virtio_hmm/late` below the debug file system. This file
//! parses rules, for the driver and for tests, and decides which occasions a rule delays. The
//! driver itself waits.

use core::fmt;

/// The longest delay of a rule, in microseconds: longer than it takes to start a device anew.
pub const MAX_DELAY: u32 = 10_000_000;

/// How long all rules together may delay before they are set anew, in microseconds. A forgotten
/// rule slows a machine down for that long, and not for ever.
pub const MAX_LATENESS: u64 = 60_000_000;

/// The most rules at a time.
pub const MAX_RULES: u32 = 16;

/// A probability of one, in millionths.
const CERTAIN: u32 = 1_000_000;

values! {
    /// The moments at which the driver can be told to be late.
    pub enum LatePoint: u32 {
        /// Requests are in the control queue, and the device has not been kicked.
        KickControl = 0,
        /// The same for the dma queue.
        KickDma = 1,
        /// The same for the submit queue.
        KickSubmit = 2,
        /// The same for the fault queue.
        KickFault = 3,
        /// A worker has faults and has not read the process's mappings.
        Install = 4,
        /// The driver has read the process's pages, and has not checked for changes since.
        Lock = 5,
        /// Pages have been collected from their process, and the device has not been asked to copy
        /// them.
        Collected = 6,
        /// They have been copied, and are not back in their process.
        Copied = 7,
        /// A process is changing its memory, and the device has not been asked to invalidate it.
        ChangeBegins = 8,
        /// The device has been asked, and the change does not wait for the answer yet.
        ChangeEnds = 9,
        /// Pages whose contents are lost are about to be taken away from their processes.
        Lost = 10,
        /// A CPU has accessed a huge page, which is about to be split for that. The driver has
        /// dropped the fault's reference to it.
        Split = 11,
    }
}

/// The word for each point in a rule.
const WORDS: [(&str, LatePoint); 12] = [
    ("kick-control", LatePoint::KickControl),
    ("kick-dma", LatePoint::KickDma),
    ("kick-submit", LatePoint::KickSubmit),
    ("kick-fault", LatePoint::KickFault),
    ("install", LatePoint::Install),
    ("lock", LatePoint::Lock),
    ("collected", LatePoint::Collected),
    ("copied", LatePoint::Copied),
    ("change-begins", LatePoint::ChangeBegins),
    ("change-ends", LatePoint::ChangeEnds),
    ("lost", LatePoint::Lost),
    ("split", LatePoint::Split),
];

impl LatePoint {
    /// Every point.
    pub fn all() -> impl Iterator<Item = Self> {
        WORDS.iter().map(|(_, point)| *point)
    }

    /// Its word in a rule.
    pub fn word(self) -> &'static str {
        let found = WORDS.iter().find(|(_, point)| *point == self);
        found.map_or("", |(word, _)| word)
    }

    /// The point with this word in a rule.
    pub fn from_word(word: &str) -> Option<Self> {
        let found = WORDS.iter().find(|(other, _)| *other == word);
        found.map(|(_, point)| *point)
    }
}

/// Where the driver is late, for how long, and how often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LateRule {
    /// The point.
    pub point: LatePoint,
    /// The shortest delay, in microseconds.
    pub least: u32,
    /// The longest delay, in microseconds; not less than `least`.
    pub most: u32,
    /// Only every N-th occasion; not zero.
    pub every: u32,
    /// Only this many times, if there is a limit.
    pub count: Option<u32>,
    /// With this probability each time, in millionths.
    pub probability: u32,
    /// The seed of the random choices for `probability` and the delay.
    pub seed: u64,
}

/// Why a text is not a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LateError {
    /// It does not begin with `delay=`, the only action of a driver.
    Action,
    /// There is no such point.
    Point,
    /// A part is not of the form `KEY=VALUE`, or there is no such key.
    Key,
    /// A time is not a number with `us`, `ms` or `s`, is longer than [`MAX_DELAY`], or a
    /// range of times ends before it begins.
    Time,
    /// A number is invalid or out of range.
    Number,
}

impl fmt::Display for LateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Action => "a rule begins with delay=TIME@POINT or delay=TIME..TIME@POINT",
            Self::Point => "there is no such point",
            Self::Key => "the keys are every, count, probability and seed",
            Self::Time => "a time is a number with us, ms or s, and at most 1s",
            Self::Number => "a number is out of range",
        })
    }
}

impl LateRule {
    /// Parses a rule: `delay=TIME[..TIME]@POINT[,every=N][,count=N][,probability=P][,seed=N]`.
    ///
    /// # Errors
    ///
    /// The mistake in the text.
    pub fn parse(text: &str) -> Result<Self, LateError> {
        let mut parts = text.split(',').map(str::trim);
        let action = parts.next().and_then(|part| part.strip_prefix("delay="));
        let (delay, point) = action
            .and_then(|action| action.split_once('@'))
            .ok_or(LateError::Action)?;
        let (least, most) = delay.split_once("..").unwrap_or((delay, delay));
        let mut rule = Self {
            point: LatePoint::from_word(point).ok_or(LateError::Point)?,
            least: time(least)?,
            most: time(most)?,
            every: 1,
            count: None,
            probability: CERTAIN,
            seed: 0,
        };
        if rule.least > rule.most {
            return Err(LateError::Time);
        }
        for part in parts {
            let (key, value) = part.split_once('=').ok_or(LateError::Key)?;
            match key {
                "every" => rule.every = positive(value)?,
                "count" => rule.count = Some(positive(value)?),
                "probability" => rule.probability = probability(value)?,
                "seed" => rule.seed = value.parse().map_err(|_| LateError::Number)?,
                _ => return Err(LateError::Key),
            }
        }
        Ok(rule)
    }

    /// The delay of the rule at an occasion, in microseconds, if any. `occasion` is the occasion's
    /// number at its point, from 1 on. `struck` is the number of delays so far.
    pub fn delay(&self, occasion: u64, struck: u64) -> Option<u32> {
        let is_over = self.count.is_some_and(|count| struck >= u64::from(count));
        let is_turn = occasion.checked_rem(u64::from(self.every)) == Some(0);
        if is_over || !is_turn {
            return None;
        }
        let chance = mixed(self.seed ^ mixed(occasion));
        if chance % u64::from(CERTAIN) >= u64::from(self.probability) {
            return None;
        }
        let choices = u64::from(self.most.saturating_sub(self.least)).saturating_add(1);
        let more = mixed(chance).checked_rem(choices).unwrap_or(0);
        Some(self.least.saturating_add(u32::try_from(more).unwrap_or(0)))
    }
}

impl fmt::Display for LateRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "delay={}us", self.least)?;
        if self.most > self.least {
            write!(f, "..{}us", self.most)?;
        }
        write!(f, "@{}", self.point.word())?;
        if self.every > 1 {
            write!(f, ",every={}", self.every)?;
        }
        if let Some(count) = self.count {
            write!(f, ",count={count}")?;
        }
        if self.probability < CERTAIN {
            write!(f, ",probability=0.{:06}", self.probability)?;
        }
        if self.seed != 0 {
            write!(f, ",seed={}", self.seed)?;
        }
        Ok(())
    }
}

/// From 0 to 1, with at most six digits after the point; in millionths.
fn probability(text: &str) -> Result<u32, LateError> {
    let (whole, digits) = text.split_once('.').unwrap_or((text, ""));
    if digits.len() > 6 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(LateError::Number);
    }
    let whole = match whole {
        "0" | "" if !digits.is_empty() || whole == "0" => 0,
        "1" => CERTAIN,
        _ => return Err(LateError::Number),
    };
    let places = digits.bytes().chain(core::iter::repeat(b'0')).take(6);
    let part = places.fold(0_u32, |sum, digit| {
        sum.saturating_mul(10)
            .saturating_add(u32::from(digit.saturating_sub(b'0')))
    });
    Some(whole.saturating_add(part))
        .filter(|probability| *probability <= CERTAIN)
        .ok_or(LateError::Number)
}

fn positive(text: &str) -> Result<u32, LateError> {
    match text.parse() {
        Ok(0) | Err(_) => Err(LateError::Number),
        Ok(number) => Ok(number),
    }
}

/// Microseconds.
fn time(text: &str) -> Result<u32, LateError> {
    let (number, unit) = if let Some(number) = text.strip_suffix("us") {
        (number, 1)
    } else if let Some(number) = text.strip_suffix("ms") {
        (number, 1_000)
    } else {
        (text.strip_suffix('s').ok_or(LateError::Time)?, 1_000_000)
    };
    let time = number.parse::<u32>().ok();
    time.and_then(|number| number.checked_mul(unit))
        .filter(|time| *time <= MAX_DELAY)
        .ok_or(LateError::Time)
}

/// A pseudorandom number for each `number`: the two multiplications and shifts spread every bit
/// over all others.
fn mixed(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
