//! Heat: how much memory has been used lately; and the heat of granules that are not on the device.
//!
//! It does not know what follows from it.

use super::Granule;

/// Use in lines, halved at each cooling. It is halved when it is looked at, so that a cooling costs
/// nothing. It ends at 2^32 - 1 lines, 256 GiB in a few capacities of use: what is that hot stays.
#[derive(Clone, Copy, Debug)]
pub(super) struct Heat {
    lines: u32,
    /// The number of coolings that `lines` has seen.
    coolings: u32,
}

impl Heat {
    /// The heat of memory that was not used.
    pub(super) const NONE: Self = Self::new(0, 0);

    /// So many lines now.
    pub(super) const fn new(lines: u32, coolings: u32) -> Self {
        Self { lines, coolings }
    }

    /// Its lines after so many coolings in all.
    pub(super) fn at(self, coolings: u32) -> u32 {
        let missed = coolings.wrapping_sub(self.coolings);
        self.lines.checked_shr(missed).unwrap_or(0)
    }

    /// Adds use, and returns the sum.
    pub(super) fn add(&mut self, lines: u64, coolings: u32) -> u32 {
        let lines = u32::try_from(lines).unwrap_or(u32::MAX);
        let sum = self.at(coolings).saturating_add(lines);
        *self = Self::new(sum, coolings);
        sum
    }
}

/// An entry of the table of granules that are not on the device: free, or the heat of one.
#[derive(Clone, Copy, Debug)]
pub struct Remote {
    granule: Option<Granule>,
    heat: Heat,
}

impl Remote {
    /// An entry for no granule.
    pub const FREE: Self = Self {
        granule: None,
        heat: Heat::NONE,
    };
}

/// How many entries a granule can be in: a look-up reads so many, in about two cache lines each.
const WAYS: usize = 8;

/// The table of granules that are not on the device.
pub(super) struct Remotes<'a>(pub(super) &'a mut [Remote]);

impl Remotes<'_> {
    /// The entries that a granule can be in.
    fn set(&mut self, granule: Granule) -> &mut [Remote] {
        let sets = self.0.len().div_ceil(WAYS) as u64;
        // Neighbours get neighbouring sets, so that a long range fills all of them alike.
        let set = granule.0.checked_rem(sets).unwrap_or(0);
        let start = usize::try_from(set).unwrap_or(0).saturating_mul(WAYS);
        let end = start.saturating_add(WAYS).min(self.0.len());
        self.0.get_mut(start..end).unwrap_or_default()
    }

    fn entry(&mut self, granule: Granule) -> Option<&mut Remote> {
        let mut set = self.set(granule).iter_mut();
        set.find(|entry| entry.granule == Some(granule))
    }

    /// What is known of a granule.
    pub(super) fn find(&mut self, granule: Granule) -> Option<Heat> {
        self.entry(granule).map(|entry| entry.heat)
    }

    /// Adds use of a granule, and returns its heat in lines.
    pub(super) fn add(&mut self, granule: Granule, lines: u64, coolings: u32) -> u32 {
        if let Some(entry) = self.entry(granule) {
            return entry.heat.add(lines, coolings);
        }
        let mut heat = Heat::NONE;
        let sum = heat.add(lines, coolings);
        self.remember(granule, heat, coolings);
        sum
    }

    /// Notes the heat of a granule that has no entry, in place of the coldest one of its set.
    pub(super) fn remember(&mut self, granule: Granule, heat: Heat, coolings: u32) {
        let temperature = |entry: &&mut Remote| match entry.granule {
            Some(_) => u64::from(entry.heat.at(coolings)).saturating_add(1),
            None => 0,
        };
        if let Some(entry) = self.set(granule).iter_mut().min_by_key(temperature) {
            *entry = Remote {
                granule: Some(granule),
                heat,
            };
        }
    }

    /// Drops what is known of a granule.
    pub(super) fn forget(&mut self, granule: Granule) {
        if let Some(entry) = self.entry(granule) {
            *entry = Remote::FREE;
        }
    }
}
