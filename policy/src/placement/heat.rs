//! Heat: how much memory has been used lately; and what is known of granules that are not on the
//! device.
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

    /// Adds use.
    pub(super) fn add(&mut self, lines: u64, coolings: u32) {
        let lines = u32::try_from(lines).unwrap_or(u32::MAX);
        *self = Self::new(self.at(coolings).saturating_add(lines), coolings);
    }
}

/// What is known of a granule, wherever it is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Record {
    /// How much it was used.
    pub(super) heat: Heat,
    /// Whether the job of its last fault had announced to use all of it.
    pub(super) whole: bool,
}

impl Record {
    /// Of a granule that was not used.
    pub(super) const NONE: Self = Self {
        heat: Heat::NONE,
        whole: false,
    };
}

/// An entry of the table of granules that are not on the device: free, or what is known of one.
#[derive(Clone, Copy, Debug)]
pub struct Remote {
    granule: Option<Granule>,
    record: Record,
}

impl Remote {
    /// An entry for no granule.
    pub const FREE: Self = Self {
        granule: None,
        record: Record::NONE,
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

    /// Notes whether a job has announced to use all of a granule. Returns what is known of it.
    pub(super) fn announce(&mut self, granule: Granule, whole: bool, coolings: u32) -> Record {
        if let Some(entry) = self.entry(granule) {
            entry.record.whole = whole;
            return entry.record;
        }
        let record = Record {
            heat: Heat::NONE,
            whole,
        };
        // What is false without an entry needs none.
        if whole {
            self.remember(granule, record, coolings);
        }
        record
    }

    /// Whether a job has announced to use all of a granule.
    pub(super) fn is_whole(&mut self, granule: Granule) -> bool {
        self.entry(granule).is_some_and(|entry| entry.record.whole)
    }

    /// Adds use of a granule, and returns what is known of it.
    pub(super) fn add(&mut self, granule: Granule, lines: u64, coolings: u32) -> Record {
        if let Some(entry) = self.entry(granule) {
            entry.record.heat.add(lines, coolings);
            return entry.record;
        }
        let mut record = Record::NONE;
        record.heat.add(lines, coolings);
        self.remember(granule, record, coolings);
        record
    }

    /// Notes what is known of a granule that has no entry, in place of the coldest one of its set.
    pub(super) fn remember(&mut self, granule: Granule, record: Record, coolings: u32) {
        let temperature = |entry: &&mut Remote| match entry.granule {
            Some(_) => u64::from(entry.record.heat.at(coolings)).saturating_add(1),
            None => 0,
        };
        if let Some(entry) = self.set(granule).iter_mut().min_by_key(temperature) {
            *entry = Remote {
                granule: Some(granule),
                record,
            };
        }
    }

    /// Drops what is known of a granule, and returns it.
    pub(super) fn forget(&mut self, granule: Granule) -> Record {
        match self.entry(granule) {
            Some(entry) => core::mem::replace(entry, Remote::FREE).record,
            None => Record::NONE,
        }
    }
}
