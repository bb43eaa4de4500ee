//! Uses of granules, in order: what a trace of pages is for a policy that moves granules.
//!
//! It does not know where a granule is.

use std::collections::HashMap;

use crate::trace::{Access, Trace, PAGE_BYTES};

/// Use of one granule without use of another one between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Use {
    /// Which granule: an index below [`Uses::granules`], in the order of first use.
    pub granule: usize,
    /// How many bytes of it, at least 1; more than its size if some were used again and again.
    pub bytes: u64,
    /// How many bytes the job had announced to use from its first address on.
    pub announced: u64,
}

/// All uses of granules of one size.
#[derive(Clone, Debug)]
pub struct Uses {
    /// In order.
    pub uses: Vec<Use>,
    /// How many granules there are.
    pub granules: usize,
    /// The size of a granule, in bytes.
    pub granule_bytes: u64,
}

impl Uses {
    /// The uses in a trace of granules of so many bytes, a power of two of at least a page.
    #[must_use]
    pub fn of(trace: &Trace, granule_bytes: u64) -> Self {
        let per_granule = (granule_bytes / PAGE_BYTES).max(1);
        let mut numbers = HashMap::new();
        let mut uses: Vec<Use> = Vec::new();
        for access in &trace.accesses {
            for (name, bytes, announced) in parts(access, per_granule) {
                let next = numbers.len();
                let granule = *numbers.entry(name).or_insert(next);
                match uses.last_mut() {
                    Some(last) if last.granule == granule => last.bytes += bytes,
                    _ => uses.push(Use {
                        granule,
                        bytes,
                        announced,
                    }),
                }
            }
        }
        Self {
            uses,
            granules: numbers.len(),
            granule_bytes: per_granule * PAGE_BYTES,
        }
    }

    /// The size of all granules together, in bytes.
    #[must_use]
    pub fn footprint(&self) -> u64 {
        self.granules as u64 * self.granule_bytes
    }

    /// All bytes that were used.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.uses.iter().map(|each| each.bytes).sum()
    }

    /// For each use, the next one of the same granule: its index, or `None`.
    #[must_use]
    pub fn next_of_same(&self) -> Vec<Option<usize>> {
        let mut later = vec![None; self.granules];
        let mut next = vec![None; self.uses.len()];
        for (index, each) in self.uses.iter().enumerate().rev() {
            next[index] = later[each.granule].replace(index);
        }
        next
    }
}

/// The parts of an access, by granule: its number among all addresses, bytes, announced bytes. The
/// bytes of an access are spread over its pages.
fn parts(access: &Access, per_granule: u64) -> impl Iterator<Item = (u64, u64, u64)> {
    let Access {
        first,
        pages,
        bytes,
        announced,
        ..
    } = *access;
    let up_to = move |page: u64| {
        let share = u128::from(bytes) * u128::from(page - first) / u128::from(pages);
        u64::try_from(share).expect("a part of the bytes")
    };
    let end = first + pages;
    (first / per_granule..=(end - 1) / per_granule).filter_map(move |granule| {
        let from = first.max(granule * per_granule);
        let to = end.min((granule + 1) * per_granule);
        let announced = announced.saturating_sub(from - first) * PAGE_BYTES;
        let bytes = up_to(to) - up_to(from);
        (bytes > 0).then_some((granule, bytes, announced))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uses(accesses: &[(u64, u64, u64, u64)]) -> Uses {
        let accesses = accesses
            .iter()
            .map(|&(first, pages, bytes, announced)| Access {
                first,
                pages,
                bytes,
                written: false,
                announced,
            });
        let trace = Trace {
            accesses: accesses.collect(),
        };
        Uses::of(&trace, 4 * PAGE_BYTES)
    }

    #[test]
    fn an_access_is_cut_at_the_ends_of_granules_and_keeps_its_bytes() {
        let found = uses(&[(3, 6, 601, 20)]);
        let bytes: Vec<_> = found.uses.iter().map(|each| each.bytes).collect();
        assert_eq!(bytes, [100, 400, 101]);
        let announced = found.uses.iter().map(|each| each.announced / PAGE_BYTES);
        assert_eq!(announced.collect::<Vec<_>>(), [20, 19, 15]);
        assert_eq!((found.granules, found.bytes()), (3, 601));
    }

    #[test]
    fn use_of_the_same_granule_without_another_between_is_one_use() {
        let found = uses(&[(0, 1, 64, 1), (3, 1, 64, 9), (4, 1, 64, 1), (1, 1, 64, 1)]);
        let granules: Vec<_> = found.uses.iter().map(|each| each.granule).collect();
        assert_eq!(granules, [0, 1, 0]);
        assert_eq!(found.uses[0].bytes, 128);
        assert_eq!(
            found.uses[0].announced, PAGE_BYTES,
            "what a fault would say"
        );
        assert_eq!(found.next_of_same(), [Some(2), None, None]);
    }
}
