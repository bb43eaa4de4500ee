//! A link between system and device memory, by its rate and its latency.

use std::time::Duration;

use hmm_cli::size;

use crate::cost::Cost;

/// The rate and the latency of a link, which carries one thing at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// Bytes in a second, both directions together; not zero.
    pub rate: u64,
    /// The time before the first byte of each transfer arrives.
    pub latency: Duration,
}

impl Link {
    /// How long the transfers take, one after the other. Nothing else takes any time: a real device
    /// works meanwhile, and has several transfers under way.
    #[must_use]
    pub fn time(&self, cost: &Cost) -> Duration {
        let nanoseconds = u128::from(cost.link_bytes()) * 1_000_000_000 / u128::from(self.rate);
        let latency = self.latency.as_nanos() * u128::from(cost.transfers());
        Duration::from_nanos(u64::try_from(nanoseconds + latency).unwrap_or(u64::MAX))
    }
}

/// A link as on the daemon's command line: bytes in a second, and a latency if there is one, such as
/// `16G` or `16G,1us`.
///
/// # Errors
///
/// When it is no such text, or the rate is zero.
pub fn parse(text: &str) -> Result<Link, String> {
    let (rate, latency) = match text.split_once(',') {
        Some((rate, latency)) => (rate, time(latency)?),
        None => (text, Duration::ZERO),
    };
    let rate = size::parse(rate)?;
    Ok(Link { rate, latency })
}

/// The units of a latency, in nanoseconds.
const UNITS: [(&str, u64); 3] = [("ns", 1), ("us", 1000), ("ms", 1_000_000)];

fn time(text: &str) -> Result<Duration, String> {
    let value = UNITS.into_iter().find_map(|(unit, nanoseconds)| {
        let number = text.strip_suffix(unit)?.parse::<u64>().ok()?;
        number.checked_mul(nanoseconds).map(Duration::from_nanos)
    });
    value.ok_or_else(|| "a latency is a number with ns, us or ms, such as 1us".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_a_rate_and_perhaps_a_latency() {
        let link = parse("16G,1us").unwrap();
        assert_eq!(link.rate, 16 << 30);
        assert_eq!(link.latency, Duration::from_micros(1));
        assert_eq!(parse("1M").unwrap().latency, Duration::ZERO);
        for text in [
            "",
            "0",
            "fast",
            "16G,",
            "16G,1",
            "16G,1 year",
            "16G,1us,2us",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_time_is_that_of_all_bytes_and_of_each_transfer() {
        let cost = Cost {
            to_device: 1000,
            to_system: 500,
            in_place: 500,
            on_device: 1 << 40,
            moves: 2,
            evictions: 1,
            misses: 7,
            ..Cost::default()
        };
        let link = parse("1000,1ms").unwrap();
        assert_eq!(link.time(&cost), Duration::from_millis(2010));
    }
}
