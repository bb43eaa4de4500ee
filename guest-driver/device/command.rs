// SPDX-License-Identifier: GPL-2.0

//! Every request that the driver can send to the device, one type each.
//!
//! Knows the layout of requests, but not when they are sent.

use crate::{
    device::queue::Command,
    wire::{
        command::{
            map_flags, AnswerEntry, CancelEntry, FetchEntry, InitEntry, MapEntry, QueryResult,
            RangeEntry, Request, MAX_MAP_PAGES,
        },
        config,
        dma::{DmaItem, ItemResult, Kind},
        fault::{Action, Reason},
        statistics::Statistics,
        Queue, LARGE_ORDER, LARGE_PAGES, PAGE_SHIFT,
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
    /// Remove mappings; the reply guarantees that the device no longer uses them.
    Unmap = Unmap on Control (RangeEntry) -> ();
    /// Answer faults.
    Answer = Answer on Control (AnswerEntry) -> ();
    /// End jobs early.
    Cancel = Cancel on Control (CancelEntry) -> ();
    /// Look up translations.
    Query = Query on Control (RangeEntry) -> QueryResult;
    /// Read the device's counters.
    ReadStatistics = Statistics on Control (()) -> Statistics;
    /// Copy, clear or discard frames.
    Copy = Copy on Dma (DmaItem) -> ItemResult;
    /// Remove mappings of a few pages, then copy the pages to system memory.
    Fetch = Fetch on Control (FetchEntry) -> ItemResult;
    /// The same for many pages, on a queue where it does not delay other invalidations.
    LongFetch = Fetch on Dma (FetchEntry) -> ItemResult;
}

impl Init {
    /// Its only entry. {drv-reserved}
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
    /// In system memory: a page frame number.
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
            Self::System(frame) => Self::System(frame.saturating_add(pages)),
            Self::Device(frame) => Self::Device(frame.saturating_add(pages)),
        }
    }
}

// A `Map` covers one region at a time.
const _: () = assert!(LARGE_PAGES <= MAX_MAP_PAGES);

impl Map {
    /// Maps `pages` pages from `address` on, with a set of [`rights`](crate::wire::rights). With
    /// `large` they are held by large leaves; then everything must be aligned to their size.
    pub(crate) fn entry(
        address: usize,
        frame: Frame,
        pages: u32,
        large: bool,
        rights: u32,
    ) -> MapEntry {
        let (frame, flag) = match frame {
            Frame::System(frame) => (frame, 0),
            Frame::Device(frame) => (frame, map_flags::DEVICE),
        };
        MapEntry {
            address: (address as u64).into(),
            frame: frame.into(),
            pages: pages.into(),
            order: if large { LARGE_ORDER as u16 } else { 0 }.into(),
            flags: (rights as u16 | flag).into(),
        }
    }
}

/// The pages of a page-aligned range of addresses.
pub(crate) fn range_entry(range: &Range<usize>) -> RangeEntry {
    RangeEntry {
        address: (range.start as u64).into(),
        pages: (range.len() as u64 >> PAGE_SHIFT).into(),
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

    /// The page is not available.
    pub(crate) fn terminate(fault: u64, reason: Reason) -> AnswerEntry {
        AnswerEntry {
            fault: fault.into(),
            action: Action::Terminate.raw().into(),
            reason: reason.raw().into(),
        }
    }
}

/// An entry of a fetch: takes pages from `address` on away from the device, then performs `item`,
/// which must be a copy of them to system memory. {drv-reserved}
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
    /// Copies `pages` pages of system memory to device memory.
    pub(crate) fn to_device(system: u64, device: u64, pages: u32) -> DmaItem {
        Self::item(Kind::ToDevice, system, device, pages)
    }

    /// Copies `pages` frames of device memory to system memory.
    pub(crate) fn to_system(device: u64, system: u64, pages: u32) -> DmaItem {
        Self::item(Kind::ToSystem, device, system, pages)
    }

    /// Fills `pages` frames of device memory with zeros.
    pub(crate) fn clear(device: u64, pages: u32) -> DmaItem {
        Self::item(Kind::Clear, 0, device, pages)
    }

    /// Forgets the contents of `pages` frames of device memory.
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
