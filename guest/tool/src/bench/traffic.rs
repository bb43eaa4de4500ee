//! What driver and device did during a measurement, by their own counters.

use anyhow::Result;
use hmm::{Counters, Space};

/// The growth of the counters.
pub(super) struct Traffic {
    before: Counters,
    after: Counters,
}

impl Traffic {
    /// Measures the counters around `work`. Returns their growth and the result of `work`.
    pub(super) fn of<T>(space: &Space, work: impl FnOnce() -> Result<T>) -> Result<(Self, T)> {
        let before = space.device().counters()?;
        let done = work()?;
        let after = space.device().counters()?;
        Ok((Self { before, after }, done))
    }

    /// The growth of one counter.
    pub(super) fn grown(&self, counter: impl Fn(&Counters) -> u64) -> f64 {
        // The counts of a few seconds: far fewer than 53 bits.
        #[allow(clippy::cast_precision_loss)]
        let grown = counter(&self.after).wrapping_sub(counter(&self.before)) as f64;
        grown
    }

    /// Requests of the driver, without the one that read the counters.
    pub(super) fn requests(&self) -> f64 {
        let all =
            |counters: &Counters| counters.driver.control_requests + counters.driver.dma_requests;
        (self.grown(all) - 1.0).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    #[test]
    fn what_has_grown_is_counted_without_the_question() {
        let (before, mut after) = (Counters::new_zeroed(), Counters::new_zeroed());
        after.driver.control_requests = 3;
        after.driver.dma_requests = 2;
        let traffic = Traffic { before, after };
        assert!((traffic.requests() - 4.0).abs() < 1e-9);
        let dma = traffic.grown(|counters| counters.driver.dma_requests);
        assert!((dma - 2.0).abs() < 1e-9);
    }
}
