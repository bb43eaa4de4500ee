//! What the driver takes for memory that is mapped on the device.

use std::fs;

use anyhow::{Context, Result};
use hmm::{work, Space};
use hmm_bench::{Bench, Better, Unit};

use super::buffer::{Buffer, Pages};

/// Measures it for `mapped` bytes, page by page.
pub(super) fn measure(bench: &mut Bench, space: &Space, mapped: usize) {
    bench.group("memory of the driver");
    let what = (Unit::Mebibytes, Better::Lower);
    // Nobody but the driver is at work; what others have taken or given back all the same is
    // not told apart, and the median passes over it.
    let name = format!("for {} MiB in 4 KiB pages on the device", mapped >> 20);
    bench.figure(&name, what, || -> Result<f64> {
        let buffer = Buffer::filled(space, mapped, Pages::Small)?;
        let before = slab()?;
        space.run(work::sum(buffer.words()))?;
        Ok((slab()? - before).max(0.0))
    });
}

/// What the kernel's small allocations take, in mebibytes.
fn slab() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let line = text.lines().find_map(|line| line.strip_prefix("Slab:"));
    let kibibytes: Option<f64> =
        line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok());
    Ok(kibibytes.context("/proc/meminfo does not tell of slabs")? / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_has_small_allocations() {
        assert!(slab().unwrap() > 0.1);
    }
}
