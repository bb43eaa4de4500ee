//! What a schedule of moves costs.

use serde::Serialize;

/// What happened in a replay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Bytes that moved to the device.
    pub to_device: u64,
    /// Bytes that moved home. What is on the device at the end stays there.
    pub to_system: u64,
    /// Bytes that jobs used where they were, not on the device.
    pub in_place: u64,
    /// Bytes that jobs used on the device.
    pub on_device: u64,
    /// Granules that moved to the device.
    pub moves: u64,
    /// Granules that moved home.
    pub evictions: u64,
    /// Uses that found their granule on the device.
    pub hits: u64,
    /// Uses that did not, and used it in place.
    pub misses: u64,
    /// Uses for which a job had to wait for a decision.
    pub faults: u64,
}

impl Cost {
    /// Counts a move to the device.
    pub fn comes(&mut self, granule_bytes: u64) {
        self.moves += 1;
        self.to_device += granule_bytes;
    }

    /// Counts a move home: with HMM, memory has one place, so that an eviction always copies.
    pub fn leaves(&mut self, granule_bytes: u64) {
        self.evictions += 1;
        self.to_system += granule_bytes;
    }

    /// Counts a use on the device.
    pub fn hit(&mut self, bytes: u64) {
        self.hits += 1;
        self.on_device += bytes;
    }

    /// Counts a use in place.
    pub fn miss(&mut self, bytes: u64) {
        self.misses += 1;
        self.in_place += bytes;
    }

    /// All bytes that crossed the link.
    #[must_use]
    pub fn link_bytes(&self) -> u64 {
        self.to_device + self.to_system + self.in_place
    }

    /// How often something crossed the link: moves, evictions, and uses in place.
    #[must_use]
    pub fn transfers(&self) -> u64 {
        self.moves + self.evictions + self.misses
    }
}
