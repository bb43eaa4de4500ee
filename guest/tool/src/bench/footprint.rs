//! The memory that the driver uses for memory that is mapped on the device.

use std::fs;

use anyhow::{Context, Result};
use hmm::{work, Space};
use hmm_bench::{Bench, Better, Unit};
use hmm_tool::buffer::{Buffer, Pages};

/// Measures it for `mapped` bytes, page by page.
pub(super) fn measure(bench: &mut Bench, space: &Space, mapped: usize) {
    bench.group("memory of the driver");
    let what = (Unit::Mebibytes, Better::Lower);
    // Only the driver is at work. Allocations by other parts of the system are not told apart; the
    // median passes over them.
    let name = format!("for {} MiB in 4 KiB pages on the device", mapped >> 20);
    bench.figure(&name, what, || -> Result<f64> {
        let buffer = Buffer::filled(space, mapped, Pages::Small)?;
        let before = allocated()?;
        space.run(work::sum(buffer.words()))?;
        Ok((allocated()? - before).max(0.0))
    });
}

/// The size of the kernel's small allocations in use, in mebibytes.
fn allocated() -> Result<f64> {
    let table = fs::read_to_string("/proc/slabinfo").context("reading /proc/slabinfo")?;
    in_use(&table).context("/proc/slabinfo has another form")
}

/// Parses a line of a table of caches: its name, objects in use, objects, bytes of each.
fn in_use(table: &str) -> Option<f64> {
    let mut bytes = 0.0;
    // The first two lines are the version and a heading.
    for line in table.lines().skip(2) {
        let mut numbers = line.split_ascii_whitespace().skip(1);
        let used: f64 = numbers.next()?.parse().ok()?;
        let size: f64 = numbers.nth(1)?.parse().ok()?;
        bytes += used * size;
    }
    Some(bytes / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_in_use_count_with_their_sizes() {
        let table = "slabinfo - version: 2.1\n\
                     # name <active_objs> <num_objs> <objsize> <objperslab>\n\
                     vma 1024 2000 512 16 2 : tunables 0 0 0\n\
                     kmalloc-8 131072 131072 8 512 1 : tunables 0 0 0\n";
        assert!((in_use(table).unwrap() - 1.5).abs() < 1e-9);
        assert_eq!(in_use("a\nb\nc d e\n"), None);
    }
}
