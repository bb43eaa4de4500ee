//! `hmm migrate`: how fast memory moves.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use hmm::{page_size, Destination, Device, Migration};
use hmm_cli::{remark, say};
use hmm_tool::argument::must_fit;
use hmm_tool::memory::{first_difference, write_pattern, Mapping};

/// The seed of the memory's contents; any would do.
const SEED: u64 = 0x5eed;

/// One move of the memory.
struct Leg {
    name: &'static str,
    pages: u64,
    time: Duration,
}

impl Leg {
    fn print(&self, json: bool) {
        let bytes = self.pages * page_size() as u64;
        // A gigabyte per second is a byte per nanosecond.
        #[allow(clippy::cast_precision_loss)] // A rate needs three digits.
        let rate = bytes as f64 / self.time.as_nanos() as f64;
        if json {
            let nanoseconds = u64::try_from(self.time.as_nanos()).unwrap_or(u64::MAX);
            say!(
                "{}",
                serde_json::json!({
                    "leg": self.name,
                    "pages": self.pages,
                    "ns": nanoseconds,
                    "gigabytes_per_second": rate,
                })
            );
        } else {
            let time = format!("{:.1?}", self.time);
            say!(
                "{:<26} {:>8} pages  {time:>9}  {rate:>7.3} GB/s",
                self.name,
                self.pages
            );
        }
    }
}

/// Moves memory to the device and back, by request and by CPU faults. Returns whether all of it
/// came back unchanged.
pub(crate) fn measure(path: &Path, bytes: usize, json: bool) -> Result<bool> {
    let space = Device::open(path)?.bind()?;
    let bytes = bytes.next_multiple_of(page_size());
    let info = space.device().info()?;
    must_fit("migrate", bytes, &info)?;
    let mut memory = Mapping::anonymous(bytes)?;
    write_pattern(SEED, memory.numbers_mut());
    let range = memory.pages();
    let pages = range.pages() as u64;
    let mut whole = true;
    let mut request = |name, destination| -> Result<()> {
        let start = Instant::now();
        let Migration { moved, .. } = space.migrate(range, destination)?;
        Leg {
            name,
            pages: moved,
            time: start.elapsed(),
        }
        .print(json);
        whole &= moved == pages;
        Ok(())
    };
    request("to the device", Destination::Device)?;
    request("to system by request", Destination::System)?;
    request("to the device again", Destination::Device)?;

    let start = Instant::now();
    // Reading one number of each page is enough to move it back to system memory.
    let numbers = memory.numbers::<u64>();
    let touched = numbers.iter().step_by(page_size() / size_of::<u64>());
    std::hint::black_box(touched.fold(0, |sum: u64, number| sum.wrapping_add(*number)));
    Leg {
        name: "to system by CPU faults",
        pages,
        time: start.elapsed(),
    }
    .print(json);

    let difference = first_difference(SEED, numbers);
    if let Some(index) = difference {
        remark!(
            "hmm: the memory came back changed at byte {}",
            index * size_of::<u64>()
        );
    }
    if !whole {
        remark!("hmm: some pages could not be moved");
    }
    Ok(whole && difference.is_none())
}
