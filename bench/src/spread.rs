//! Summarises several repetitions.

use serde::{Deserialize, Serialize};

/// The median of several repetitions and the range of their middle half.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The lower quartile.
    pub low: f64,
    /// The upper quartile.
    pub high: f64,
}

impl Spread {
    /// A number that is known without repetition.
    pub fn exact(value: f64) -> Self {
        Self {
            median: value,
            low: value,
            high: value,
        }
    }

    /// Summarises these repetitions; `None` when there are none.
    pub fn of(repetitions: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = repetitions.into_iter().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        Some(Self {
            median: quarter(&sorted, 2)?,
            low: quarter(&sorted, 1)?,
            high: quarter(&sorted, 3)?,
        })
    }

    /// Whether the middle halves of the two do not overlap.
    pub fn is_apart_from(&self, other: &Self) -> bool {
        self.high < other.low || other.high < self.low
    }
}

/// The value at this many quarters of a sorted list, interpolated between two of its values if
/// necessary.
fn quarter(sorted: &[f64], quarters: usize) -> Option<f64> {
    let fourths = sorted.len().checked_sub(1)? * quarters;
    let (below, above) = (*sorted.get(fourths / 4)?, *sorted.get(fourths.div_ceil(4))?);
    let part = [0.0, 0.25, 0.5, 0.75][fourths % 4];
    Some(below + (above - below) * part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_repetition_does_not_move_the_median() {
        let spread = Spread::of([5.0, 1.0, 3.0, 1000.0, 2.0]).unwrap();
        assert_eq!((spread.low, spread.median, spread.high), (2.0, 3.0, 5.0));
    }

    #[test]
    fn a_quartile_may_lie_between_two_repetitions() {
        let spread = Spread::of([4.0, 1.0, 2.0, 3.0]).unwrap();
        assert_eq!((spread.low, spread.median, spread.high), (1.75, 2.5, 3.25));
        assert_eq!(Spread::of([7.0]), Some(Spread::exact(7.0)));
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn spreads_that_touch_are_not_apart() {
        let spread = |low, high| Spread {
            median: f64::midpoint(low, high),
            low,
            high,
        };
        assert!(spread(1.0, 2.0).is_apart_from(&spread(2.1, 3.0)));
        assert!(spread(2.1, 3.0).is_apart_from(&spread(1.0, 2.0)));
        assert!(!spread(1.0, 2.0).is_apart_from(&spread(2.0, 3.0)));
        assert!(!spread(1.0, 4.0).is_apart_from(&spread(2.0, 3.0)));
    }
}
