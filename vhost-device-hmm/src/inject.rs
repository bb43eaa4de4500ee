//! Mishaps on demand: what a correct device never does and a driver must survive.
//!
//! A rule names a mishap, a place where it may happen, and how often it does: at every
//! N-th occasion there. Which occasions these are depends on nothing but their order, so
//! that a run can be repeated. It knows neither requests nor rings; whoever has an
//! occasion asks.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use virtio_hmm_spec::wire::dma::Kind;
use virtio_hmm_spec::wire::Queue;

/// What may go wrong with a reply on its way to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyMishap {
    /// The chain is never returned.
    Lost,
    /// The chain is returned as if half of the reply had been written.
    Short,
    /// The chain is returned as if more had been written than there is room for.
    Long,
    /// Bits of the reply are wrong.
    Garbled,
    /// The chain is returned twice.
    Repeated,
    /// Another chain is returned instead, which the ring may not even have.
    Stray,
}

const COPY_FAILURE: &str = "copy-failure";

const REPLY_MISHAPS: [(&str, ReplyMishap); 6] = [
    ("lost-reply", ReplyMishap::Lost),
    ("short-reply", ReplyMishap::Short),
    ("long-reply", ReplyMishap::Long),
    ("garbled-reply", ReplyMishap::Garbled),
    ("repeated-reply", ReplyMishap::Repeated),
    ("stray-reply", ReplyMishap::Stray),
];

const KINDS: [(&str, Kind); 4] = [
    ("to-device", Kind::ToDevice),
    ("to-system", Kind::ToSystem),
    ("on-device", Kind::OnDevice),
    ("clear", Kind::Clear),
];

const QUEUES: [(&str, Queue); 4] = [
    ("control", Queue::Control),
    ("dma", Queue::Dma),
    ("submit", Queue::Submit),
    ("fault", Queue::Fault),
];

fn value<T: Copy>(names: &[(&str, T)], wanted: &str) -> Option<T> {
    let found = names.iter().find(|(name, _)| *name == wanted);
    found.map(|(_, value)| *value)
}

fn name<T: PartialEq>(names: &[(&'static str, T)], wanted: &T) -> &'static str {
    let found = names.iter().find(|(_, value)| value == wanted);
    found.map_or("", |(name, _)| name)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Occasion {
    /// A copy of this kind, or of any.
    Copy(Option<Kind>),
    /// A reply on this queue, or on any.
    Reply(ReplyMishap, Option<Queue>),
}

/// What goes wrong, where, and how often: `MISHAP[@PLACE]=N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    occasion: Occasion,
    every: NonZeroU64,
}

/// Why a rule makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// It has no number.
    #[error("expected MISHAP[@PLACE]=N, such as copy-failure@to-device=3")]
    Form,
    /// The number is none.
    #[error("{0:?} is not a number from 1 on")]
    Number(String),
    /// There is no such mishap.
    #[error("unknown mishap {0:?}; there are copy-failure and lost-, short-, long-, garbled-, repeated- and stray-reply")]
    Mishap(String),
    /// It cannot happen there.
    #[error("unknown place {0:?}; copies fail to-device, to-system, on-device or clear, replies on control, dma, submit or fault")]
    Place(String),
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(text: &str) -> Result<Self, RuleError> {
        let (what, number) = text.split_once('=').ok_or(RuleError::Form)?;
        let every = number
            .parse()
            .map_err(|_| RuleError::Number(number.to_owned()))?;
        let (mishap, place) = match what.split_once('@') {
            Some((mishap, place)) => (mishap, Some(place)),
            None => (what, None),
        };
        let unknown = |place: &str| RuleError::Place(place.to_owned());
        let occasion = if mishap == COPY_FAILURE {
            let kind = |place| value(&KINDS, place).ok_or_else(|| unknown(place));
            Occasion::Copy(place.map(kind).transpose()?)
        } else {
            let mishap = value(&REPLY_MISHAPS, mishap)
                .ok_or_else(|| RuleError::Mishap(mishap.to_owned()))?;
            let queue = |place| value(&QUEUES, place).ok_or_else(|| unknown(place));
            Occasion::Reply(mishap, place.map(queue).transpose()?)
        };
        Ok(Self { occasion, every })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (mishap, place) = match &self.occasion {
            Occasion::Copy(kind) => (COPY_FAILURE, kind.as_ref().map(|kind| name(&KINDS, kind))),
            Occasion::Reply(mishap, queue) => (
                name(&REPLY_MISHAPS, mishap),
                queue.as_ref().map(|queue| name(&QUEUES, queue)),
            ),
        };
        match place {
            Some(place) => write!(f, "{mishap}@{place}={}", self.every),
            None => write!(f, "{mishap}={}", self.every),
        }
    }
}

/// Decides what goes wrong.
#[derive(Debug, Default)]
pub struct Injector {
    rules: Vec<(Rule, AtomicU64)>,
}

impl Injector {
    /// Lets mishaps happen by these rules.
    pub fn new(rules: &[Rule]) -> Self {
        Self {
            rules: rules
                .iter()
                .map(|rule| (*rule, AtomicU64::new(0)))
                .collect(),
        }
    }

    /// Whether the copy that is about to be made fails.
    pub fn copy_fails(&self, kind: Kind) -> bool {
        let concerned = |occasion| matches!(occasion, Occasion::Copy(wanted) if wanted.is_none_or(|wanted| wanted == kind));
        self.happens(|occasion| concerned(occasion).then_some(()))
            .is_some()
    }

    /// What happens to the reply that is about to be written on a queue, and a number
    /// that is different for each.
    pub fn reply_mishap(&self, queue: Queue) -> Option<(ReplyMishap, u64)> {
        self.happens(|occasion| match occasion {
            Occasion::Reply(mishap, wanted) if wanted.is_none_or(|wanted| wanted == queue) => {
                Some(mishap)
            }
            _ => None,
        })
    }

    /// Counts an occasion with every rule that `mishap` takes it for; what the first one
    /// says whose turn it is, and the occasion's number there.
    fn happens<T>(&self, mishap: impl Fn(Occasion) -> Option<T>) -> Option<(T, u64)> {
        let mut happens = None;
        for (rule, count) in &self.rules {
            let Some(mishap) = mishap(rule.occasion) else {
                continue;
            };
            let number = count.fetch_add(1, Ordering::Relaxed) + 1;
            if number % rule.every.get() == 0 && happens.is_none() {
                log::info!("on purpose: {rule}, at occasion {number}");
                happens = Some((mishap, number));
            }
        }
        happens
    }
}

/// Makes bits of a reply wrong: one of them, or all at random.
pub fn garble(reply: &mut [u8], number: u64) {
    let mut random = SplitMix(number);
    if random.next() % 2 == 0 {
        for byte in reply {
            let [low, ..] = random.next().to_le_bytes();
            *byte = low;
        }
    } else {
        let bits = (reply.len() as u64 * 8).max(1);
        let bit = random.next() % bits;
        if let Some(byte) = usize::try_from(bit / 8)
            .ok()
            .and_then(|at| reply.get_mut(at))
        {
            *byte ^= 1 << (bit % 8);
        }
    }
}

/// Numbers that look random (Steele, Lea and Flood, "Fast splittable pseudorandom number
/// generators", 2014).
struct SplitMix(u64);

impl SplitMix {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn injector(rules: &[&str]) -> Injector {
        let rules: Vec<Rule> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
        Injector::new(&rules)
    }

    #[test]
    fn a_rule_is_written_as_it_is_read() {
        for text in [
            "copy-failure=1",
            "copy-failure@to-system=7",
            "lost-reply=100",
            "garbled-reply@control=3",
            "stray-reply@fault=18446744073709551615",
        ] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn a_rule_that_makes_no_sense_says_why() {
        let error = |text: &str| text.parse::<Rule>().unwrap_err();
        assert_eq!(error("copy-failure"), RuleError::Form);
        assert_eq!(error("copy-failure=0"), RuleError::Number("0".into()));
        assert_eq!(error("flood=1"), RuleError::Mishap("flood".into()));
        assert_eq!(error("copy-failure@dma=1"), RuleError::Place("dma".into()));
        assert_eq!(
            error("lost-reply@clear=1"),
            RuleError::Place("clear".into())
        );
    }

    #[test]
    fn every_nth_occasion_is_the_one() {
        let injector = injector(&["copy-failure@to-device=3"]);
        let fails: Vec<bool> = (0..7)
            .map(|_| injector.copy_fails(Kind::ToDevice))
            .collect();
        assert_eq!(fails, [false, false, true, false, false, true, false]);
        assert!((0..9).all(|_| !injector.copy_fails(Kind::ToSystem)));
        assert!((0..9).all(|_| injector.reply_mishap(Queue::Dma).is_none()));
    }

    #[test]
    fn a_rule_without_a_place_counts_all_of_them() {
        let injector = injector(&["short-reply=2", "lost-reply@dma=1"]);
        let mishap = |queue| injector.reply_mishap(queue).map(|(mishap, _)| mishap);
        assert_eq!(mishap(Queue::Control), None);
        assert_eq!(mishap(Queue::Dma), Some(ReplyMishap::Short));
        assert_eq!(mishap(Queue::Dma), Some(ReplyMishap::Lost));
    }

    #[test]
    fn a_garbled_reply_is_never_right_by_chance_of_one_bit() {
        for number in 0..100 {
            let mut reply = [0x5a; 64];
            garble(&mut reply, number);
            assert_ne!(reply, [0x5a; 64]);
        }
        garble(&mut [], 1);
        garble(&mut [], 2);
    }
}
