//! `hmm stats`.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use hmm::spec::wire::Layout;
use hmm::{Counters, Device};
use hmm_cli::say;
use zerocopy::{Immutable, IntoBytes};

/// A counter's name and value.
type Counter = (&'static str, u64);

/// Prints the counters, or for ever their changes.
pub(crate) fn show(path: &Path, watch: Option<u64>, json: bool) -> Result<()> {
    let device = Device::open(path)?;
    let mut before = Groups::of(&device.counters()?);
    before.print(json);
    if let Some(seconds) = watch {
        loop {
            thread::sleep(Duration::from_secs(seconds));
            let now = Groups::of(&device.counters()?);
            now.since(&before).print(json);
            before = now;
        }
    }
    Ok(())
}

/// The counters of both sides.
struct Groups {
    driver: Vec<Counter>,
    device: Vec<Counter>,
}

impl Groups {
    fn of(counters: &Counters) -> Self {
        Self {
            driver: values(&counters.driver, u64::from_ne_bytes),
            device: values(&counters.device, u64::from_le_bytes),
        }
    }

    /// The difference to an earlier reading; a counter that shrank has wrapped.
    fn since(&self, before: &Self) -> Self {
        let changes = |now: &[Counter], before: &[Counter]| {
            let pairs = now.iter().zip(before);
            let changes = pairs.map(|(now, before)| (now.0, now.1.wrapping_sub(before.1)));
            changes.filter(|change| change.1 != 0).collect()
        };
        Self {
            driver: changes(&self.driver, &before.driver),
            device: changes(&self.device, &before.device),
        }
    }

    fn print(&self, json: bool) {
        if json {
            let object = |counters: &[Counter]| {
                let pairs = counters
                    .iter()
                    .map(|&(name, value)| (name.to_owned(), value.into()));
                serde_json::Value::Object(pairs.collect())
            };
            let both = serde_json::json!({
                "driver": object(&self.driver),
                "device": object(&self.device),
            });
            say!("{both}");
            return;
        }
        for (title, counters) in [("driver", &self.driver), ("device", &self.device)] {
            say!("{title}");
            for (name, value) in counters {
                // A counter that has shrunk is shown as a negative number.
                say!("  {:<32} {:>16}", name.replace('_', " "), i128_of(*value));
            }
        }
    }
}

/// A difference with its sign.
fn i128_of(value: u64) -> i128 {
    match i64::from_ne_bytes(value.to_ne_bytes()) {
        negative @ i64::MIN..0 => negative.into(),
        _ => value.into(),
    }
}

/// The fields of a structure that consists of 64-bit counters.
fn values<T: Layout + IntoBytes + Immutable>(
    counters: &T,
    decode: fn([u8; 8]) -> u64,
) -> Vec<Counter> {
    let bytes = counters.as_bytes();
    let fields = T::FIELDS.iter().filter_map(|field| {
        let (raw, _) = bytes.get(field.offset..)?.split_first_chunk()?;
        Some((field.name, decode(*raw)))
    });
    fields.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn counters() -> Counters {
        Counters::new_zeroed()
    }

    #[test]
    fn every_counter_of_both_sides_has_its_name_and_its_value() {
        let mut counters = counters();
        counters.driver.faults = 7;
        counters.device.freed_frame_uses = 9.into();
        let groups = Groups::of(&counters);
        assert!(groups.driver.contains(&("faults", 7)));
        assert_eq!(groups.device.last(), Some(&("freed_frame_uses", 9)));
        assert_eq!(groups.device.len() * 8, hmm::Statistics::SIZE);
    }

    #[test]
    fn only_what_changed_is_shown_and_a_loss_has_a_sign() {
        let (mut before, mut now) = (counters(), counters());
        before.driver.spaces = 3;
        now.driver.spaces = 1;
        now.driver.faults = 4;
        let change = Groups::of(&now).since(&Groups::of(&before));
        let shown: Vec<_> = change
            .driver
            .iter()
            .map(|(name, n)| (*name, i128_of(*n)))
            .collect();
        assert_eq!(shown, [("spaces", -2), ("faults", 4)]);
        assert_eq!(change.device, []);
    }
}
