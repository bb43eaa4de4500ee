//! When the next thing is done to any process: one pace for the whole run, however many processes
//! there are.
//!
//! It knows no process.

use std::time::{Duration, Instant};

/// The pace of a run.
#[derive(Debug)]
pub(super) struct Pace {
    between: Duration,
    next: Instant,
}

impl Pace {
    /// One act in this time.
    pub(super) fn new(between: Duration, now: Instant) -> Self {
        Self { between, next: now }
    }

    /// How long to wait until the next act.
    pub(super) fn left(&self, now: Instant) -> Duration {
        self.next.saturating_duration_since(now)
    }

    /// An act that began then has ended now. The next one begins in time, but not before as much
    /// time has passed as the act took: the processes have at least half of all time for themselves.
    pub(super) fn done(&mut self, begun: Instant, now: Instant) {
        let took = now.saturating_duration_since(begun);
        self.next = (begun + self.between).max(now + took);
    }
}

/// A time such as `500us`, `5ms` or `1s`.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit());
    let (number, unit) = text.split_at(split.unwrap_or(text.len()));
    let number: u32 = number.parse().map_err(|_| EXPECTED.to_owned())?;
    let unit = match unit {
        "us" => Duration::from_micros(1),
        "ms" => Duration::from_millis(1),
        "s" => Duration::from_secs(1),
        _ => return Err(EXPECTED.to_owned()),
    };
    let time = unit.checked_mul(number).filter(|time| *time <= LONGEST);
    time.ok_or_else(|| "it must be at most an hour".to_owned())
}

const EXPECTED: &str = "a time is a number with us, ms or s, such as 500us, 5ms or 1s";

const LONGEST: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    const fn milliseconds(number: u64) -> Duration {
        Duration::from_millis(number)
    }

    #[test]
    fn a_quick_act_keeps_the_pace_and_a_slow_one_leaves_as_much_time_as_it_took() {
        let begin = Instant::now();
        let mut pace = Pace::new(milliseconds(10), begin);
        assert_eq!(pace.left(begin), Duration::ZERO);
        let end = begin + milliseconds(2);
        pace.done(begin, end);
        assert_eq!(pace.left(end), milliseconds(8));
        let end = begin + milliseconds(30);
        pace.done(begin, end);
        assert_eq!(pace.left(end), milliseconds(30));
    }

    #[test]
    fn a_time_has_a_unit() {
        assert_eq!(parse("500us"), Ok(Duration::from_micros(500)));
        assert_eq!(parse("5ms"), Ok(milliseconds(5)));
        assert_eq!(parse("0s"), Ok(Duration::ZERO));
        for wrong in ["", "5", "ms", "1.5s", "-1s", "5m", "3601s", "99999999999s"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
