// SPDX-License-Identifier: GPL-2.0

//! Everything that the driver can say to the device, one type each.
//!
//! Knows the layout of requests, but nothing of when they are sent.

use crate::{
    queue::Command,
    wire::{
        command::{
            map_flags, AnswerEntry, FetchEntry, InitEntry, MapEntry, QueryResult, RangeEntry,
            Request,
        },
        config,
        dma::{DmaItem, ItemResult, Kind},
        fault::{Action, Reason},
        statistics::Statistics,
        Queue, LARGE_ORDER, PAGE_SHIFT,
    },
};
use core::ops::Range;

macro_rules! commands {
    ($($(#[$meta:meta])* $name:ident = $operation:ident on $queue:ident ($entry:ty) -> $output:ty;)+) => { $(
        $(#[$meta])*
        pub(crate) enum $name {}

        impl Command for $name {
            const OPERATION: Request = Request::$operation;
            const QUEUE: Queue = Queue::$queue;
            type Entry = $entry;
            type Output = $output;
        }
    )+ };
}

commands! {
    /// Forget everything and start anew.
    Init = Init on Control (InitEntry) -> ();
    /// Create a space.
    SpaceCreate = SpaceCreate on Control (()) -> ();
    /// End a space, with its jobs and mappings.
    SpaceDestroy = SpaceDestroy on Control (()) -> ();
    /// Install mappings.
    Map = Map on Control (MapEntry) -> ();
    /// Remove mappings; the answer is a promise.
    Unmap = Unmap on Control (RangeEntry) -> ();
    /// Answer faults.
    Answer = Answer on Control (AnswerEntry) -> ();
    /// Look up translations.
    Query = Query on Control (RangeEntry) -> QueryResult;
    /// Read the device's counters.
    ReadStatistics = Statistics on Control (()) -> Statistics;
    /// Copy, clear or discard frames.
    Copy = Copy on Dma (DmaItem) -> ItemResult;
    /// Remove mappings of a few pages, then copy them to the guest's memory.
    Fetch = Fetch on Control (FetchEntry) -> ItemResult;
    /// The same of many pages, where it keeps nobody waiting for a promise.
    LongFetch = Fetch on Dma (FetchEntry) -> ItemResult;
}

impl Init {
    /// Its only entry.
    pub(crate) fn entry() -> InitEntry {
        InitEntry {
            version: config::VERSION.into(),
            reserved: 0.into(),
        }
    }
}

/// Where pages are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Frame {
    /// In the guest's memory: a page frame number.
    System(u64),
    /// In device memory.
    Device(u64),
}

impl Frame {
    /// Whether it is in device memory.
    pub(crate) fn is_device(self) -> bool {
        matches!(self, Self::Device(_))
    }

    /// The frame that lies `pages` further on.
    pub(crate) fn after(self, pages: u64) -> Self {
        match self {
            Self::System(frame) => Self::System(frame + pages),
            Self::Device(frame) => Self::Device(frame + pages),
        }
    }
}

impl Map {
    /// Maps `pages` pages from `address` on, with a set of [`rights`](crate::wire::rights).
    /// `large` says that they are to be held by large leaves, for which everything must be
    /// aligned.
    pub(crate) fn entry(
        address: usize,
        frame: Frame,
        pages: u32,
        large: bool,
        rights: u32,
    ) -> MapEntry {
        let (frame, place) = match frame {
            Frame::System(frame) => (frame, 0),
            Frame::Device(frame) => (frame, map_flags::DEVICE),
        };
        MapEntry {
            address: (address as u64).into(),
            frame: frame.into(),
            pages: pages.into(),
            order: if large { LARGE_ORDER as u16 } else { 0 }.into(),
            flags: (rights as u16 | place).into(),
        }
    }
}

/// The pages of a range of addresses that are aligned to pages.
pub(crate) fn range_entry(range: &Range<usize>) -> RangeEntry {
    RangeEntry {
        address: (range.start as u64).into(),
        pages: ((range.end - range.start) as u64 >> PAGE_SHIFT).into(),
    }
}

impl Answer {
    /// Try again.
    pub(crate) fn retry(fault: u64) -> AnswerEntry {
        AnswerEntry {
            fault: fault.into(),
            action: Action::Retry.raw().into(),
            reason: 0.into(),
        }
    }

    /// The page cannot be had.
    pub(crate) fn terminate(fault: u64, reason: Reason) -> AnswerEntry {
        AnswerEntry {
            fault: fault.into(),
            action: Action::Terminate.raw().into(),
            reason: reason.raw().into(),
        }
    }
}

/// For a fetch: takes pages from `address` on away from the device, then does what `item` says,
/// which must be to copy them to the guest's memory.
pub(crate) fn fetch_entry(address: usize, item: &DmaItem) -> FetchEntry {
    FetchEntry {
        address: (address as u64).into(),
        source: item.source,
        destination: item.destination,
        pages: item.pages,
        reserved: 0.into(),
    }
}

impl Copy {
    /// Copies `pages` pages of the guest's memory to device memory.
    pub(crate) fn to_device(system: u64, device: u64, pages: u32) -> DmaItem {
        Self::item(Kind::ToDevice, system, device, pages)
    }

    /// Copies `pages` frames of device memory to the guest's memory.
    pub(crate) fn to_system(device: u64, system: u64, pages: u32) -> DmaItem {
        Self::item(Kind::ToSystem, device, system, pages)
    }

    /// Fills `pages` frames of device memory with zeros.
    pub(crate) fn clear(device: u64, pages: u32) -> DmaItem {
        Self::item(Kind::Clear, 0, device, pages)
    }

    /// Forgets what `pages` frames of device memory hold.
    pub(crate) fn discard(device: u64, pages: u32) -> DmaItem {
        Self::item(Kind::Discard, 0, device, pages)
    }

    fn item(kind: Kind, source: u64, destination: u64, pages: u32) -> DmaItem {
        DmaItem {
            kind: kind.raw().into(),
            pages: pages.into(),
            source: source.into(),
            destination: destination.into(),
        }
    }
}
