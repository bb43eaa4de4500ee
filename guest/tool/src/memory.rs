//! Memory that the workloads use: whole mappings, viewed as slices of numbers.
//!
//! A [`Mapping`] never changes while it exists. A workload that changes mappings while the device
//! uses them has its own memory.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use hmm::PageRange;
use hmm_cli::figure;
use zerocopy::{FromBytes, IntoBytes};

use crate::region::Region;

/// A mapping of this process, unmapped when dropped.
pub struct Mapping {
    region: Region,
}

impl Mapping {
    /// Anonymous memory of zeros.
    pub fn anonymous(bytes: usize) -> Result<Self> {
        let region = Region::anonymous(bytes)
            .with_context(|| format!("mapping {}", figure::bytes(bytes as u64)))?;
        Ok(Self { region })
    }

    /// Anonymous memory of zeros in huge pages, where the kernel has some.
    pub fn large(bytes: usize) -> Result<Self> {
        let mapping = Self::anonymous(bytes)?;
        let asked = mapping.region.prefer_large();
        asked.context("asking for huge pages")?;
        Ok(mapping)
    }

    /// A file, for reading.
    pub fn file(path: &Path) -> Result<Self> {
        let map = || Region::file(&File::open(path)?);
        let region = map().with_context(|| format!("mapping {}", path.display()))?;
        Ok(Self { region })
    }

    /// Its bytes as numbers.
    pub fn numbers<T: FromBytes + zerocopy::Immutable>(&self) -> &[T] {
        let bytes = self.region.bytes();
        let whole = bytes.len() - bytes.len() % size_of::<T>();
        // A mapping is aligned to a page and the length is a whole number of elements, so this is
        // all of it.
        <[T]>::ref_from_bytes(&bytes[..whole]).unwrap_or(&[])
    }

    /// Its bytes as numbers to change. Empty for a file.
    pub fn numbers_mut<T: FromBytes + IntoBytes>(&mut self) -> &mut [T] {
        let bytes = self.region.bytes_mut();
        let whole = bytes.len() - bytes.len() % size_of::<T>();
        <[T]>::mut_from_bytes(&mut bytes[..whole]).unwrap_or(&mut [])
    }

    /// Its pages.
    pub fn pages(&self) -> PageRange {
        PageRange::covering(self.region.bytes())
    }
}

/// The number at an index of a buffer that can be checked without a copy.
pub fn pattern(seed: u64, index: usize) -> u64 {
    // Multiplication by an odd number permutes, so no two numbers are equal.
    (index as u64 ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Fills a buffer with the pattern.
pub fn write_pattern(seed: u64, numbers: &mut [u64]) {
    for (index, number) in numbers.iter_mut().enumerate() {
        *number = pattern(seed, index);
    }
}

/// The first index where a buffer does not hold the pattern.
pub fn first_difference(seed: u64, numbers: &[u64]) -> Option<usize> {
    let mut numbers = numbers.iter().enumerate();
    numbers
        .find(|&(index, &number)| number != pattern(seed, index))
        .map(|(index, _)| index)
}

/// Memory of the guest that is available to programs, in bytes.
pub fn available() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("reading /proc/meminfo")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"));
    let kibibytes = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok());
    let kibibytes: u64 = kibibytes.context("/proc/meminfo does not say how much is available")?;
    Ok(kibibytes << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_found_intact_and_a_single_flipped_bit_is_not_overlooked() {
        let mut mapping = Mapping::anonymous(1 << 16).unwrap();
        let numbers = mapping.numbers_mut::<u64>();
        assert_eq!(numbers.len(), 1 << 13);
        write_pattern(5, numbers);
        assert_eq!(first_difference(5, numbers), None);
        numbers[8191] ^= 1 << 63;
        assert_eq!(first_difference(5, numbers), Some(8191));
        assert_eq!(first_difference(6, numbers), Some(0));
    }

    #[test]
    fn a_mapped_file_has_its_bytes_and_cannot_be_changed() {
        let program = std::env::current_exe().unwrap();
        let mut mapping = Mapping::file(&program).unwrap();
        assert_eq!(mapping.numbers::<u8>(), std::fs::read(&program).unwrap());
        assert!(mapping.numbers_mut::<u8>().is_empty());
    }

    #[test]
    fn there_is_memory() {
        assert!(available().unwrap() > 1 << 20);
    }
}
