//! Words of memory that tell to which generation they belong.
//!
//! It does not know how the memory changes.

/// Bits of a sum that count the words of one generation.
const DIGIT: u32 = 20;

/// More words than this would overflow a digit of their sum.
pub(super) const MAX_WORDS: usize = (1 << DIGIT) - 1;

/// The value of every word of a generation: one, in one of three digits.
///
/// A sum thus tells how many words of each generation it contains. One of the three digits is for
/// the generation before the last one, which no job may ever see.
pub(super) fn tag(generation: u64) -> u64 {
    1 << (DIGIT * u32::try_from(generation % 3).unwrap_or(0))
}

/// How many words of each generation a job or the CPU has found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WordCounts {
    /// Of the generation that the memory had before the change.
    pub(super) old: u64,
    /// Of the next generation.
    pub(super) new: u64,
    /// Zeros of fresh memory.
    pub(super) zero: u64,
    /// Words of the generation before the old one, or with no explanation at all.
    pub(super) strange: u64,
}

impl WordCounts {
    /// Decodes a sum of `count` words.
    pub(super) fn of_sum(sum: u64, count: usize, generation: u64) -> Self {
        let digit = |generation| sum / tag(generation) % (1 << DIGIT);
        let (old, new) = (digit(generation), digit(generation + 1));
        // Anything beyond the digits is strange too.
        let strange = digit(generation + 2) + (sum >> (3 * DIGIT));
        let named = old + new + strange;
        let strange = strange + named.saturating_sub(count as u64);
        Self {
            old,
            new,
            zero: (count as u64).saturating_sub(named),
            strange,
        }
    }

    /// Counts words one by one.
    pub(super) fn of_words(words: impl Iterator<Item = u64>, generation: u64) -> Self {
        let mut counts = Self::default();
        for word in words {
            let counter = match word {
                0 => &mut counts.zero,
                word if word == tag(generation) => &mut counts.old,
                word if word == tag(generation + 1) => &mut counts.new,
                _ => &mut counts.strange,
            };
            *counter += 1;
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_tells_how_many_words_of_each_generation_it_is_made_of() {
        for generation in 0..4 {
            let sum = 1000 * tag(generation) + 50 * tag(generation + 1);
            let counts = WordCounts::of_sum(sum, 1060, generation);
            assert_eq!(
                counts,
                WordCounts {
                    old: 1000,
                    new: 50,
                    zero: 10,
                    strange: 0
                }
            );
        }
        let full = WordCounts::of_sum(MAX_WORDS as u64 * tag(2), MAX_WORDS, 2);
        assert_eq!(
            full,
            WordCounts {
                old: MAX_WORDS as u64,
                ..WordCounts::default()
            }
        );
    }

    #[test]
    fn a_single_word_of_an_outdated_generation_is_strange() {
        let stale = 999 * tag(7) + tag(6);
        assert_eq!(WordCounts::of_sum(stale, 1000, 7).strange, 1);
        assert_eq!(
            WordCounts::of_words([tag(7), tag(6), 0].into_iter(), 7).strange,
            1
        );
    }

    #[test]
    fn poison_and_too_many_words_are_strange() {
        assert!(WordCounts::of_sum(u64::from_ne_bytes([0xa5; 8]), 10, 1).strange > 0);
        assert!(WordCounts::of_sum(11 * tag(1), 10, 1).strange > 0);
        assert_eq!(WordCounts::of_words([u64::MAX].into_iter(), 1).strange, 1);
    }
}
