//! Copy lists: frames to frames, without any address space.
//!
//! Each byte is copied once, straight between the guest's memory and device memory. A run that is
//! contiguous in the host is copied with one call. This module knows nothing of spaces or jobs. The
//! driver must ensure that nothing else uses the frames.

use std::sync::Arc;

use virtio_hmm_spec::points::Point;
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::dma::{DmaItem, Kind};
use virtio_hmm_spec::wire::PAGE_BYTES;
use vm_memory::VolatileSlice;

use super::check::{Check, POISON};
use super::linger::Lingering;
use super::memory::{self, DeviceMemory, SystemMemory};
use super::statistics::Counters;
use super::stream;
use crate::lateness::{About, Lateness};

/// The resources of a copy.
#[derive(Debug)]
pub struct Dma<'a> {
    /// Device memory.
    pub device: &'a DeviceMemory,
    /// Device frames that were discarded a moment ago.
    pub lingering: &'a Lingering,
    /// The guest's memory.
    pub system: &'a Arc<SystemMemory>,
    /// The checking mode, if on.
    pub check: Option<&'a Check>,
    /// The counters of work done.
    pub counters: &'a Counters,
    /// The rules for deliberate faults.
    pub lateness: &'a Lateness,
    /// The point at which items are carried out one by one.
    pub point: Point,
}

/// A checked item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Item {
    kind: Kind,
    pages: u64,
    source: u64,
    destination: u64,
}

impl Item {
    /// Decodes an item and checks its fields on their own.
    fn decode(raw: &DmaItem) -> Result<Self, Status> {
        let kind = Kind::from_raw(raw.kind.get());
        let item = Self {
            kind: kind.unwrap_or(Kind::Discard),
            pages: raw.pages.get().into(),
            source: raw.source.get(),
            destination: raw.destination.get(),
        };
        let reads_nothing = matches!(kind, Some(Kind::Clear | Kind::Discard));
        if item.pages == 0 || (reads_nothing && item.source != 0) {
            return Err(Status::Malformed);
        }
        kind.map(|_| item).ok_or(Status::Unsupported)
    }
}

impl Dma<'_> {
    /// Carries out one item.
    pub fn run(&self, raw: &DmaItem) -> Status {
        let status = Item::decode(raw).and_then(|item| self.execute(&item));
        match status {
            Ok(()) => Status::Ok,
            Err(status) => {
                self.counters.items_failed.add(1);
                status
            }
        }
    }

    fn execute(&self, item: &Item) -> Result<(), Status> {
        let &Item {
            kind,
            pages,
            source,
            destination,
        } = item;
        // {dev-item-bounds}
        let device = |frame| self.device.slice(frame, pages).ok_or(Status::BadFrame);
        let bytes = pages * PAGE_BYTES;
        if self.lateness.concerns(self.point) {
            let about = About {
                space: None,
                operation: Some(kind.name()),
            };
            if self.lateness.copy_fails(self.point, about) {
                return Err(Status::CopyFailed);
            }
        }
        match kind {
            Kind::ToDevice => {
                let to = device(destination)?;
                self.check_system(source, pages)?;
                self.take_into_use(destination, pages);
                self.each_piece(source, pages, &to, |piece, part| {
                    stream::copy(&piece, &part);
                })?;
                self.counters.bytes_to_device.add(bytes);
            }
            Kind::ToSystem => {
                let from = device(source)?;
                self.check_system(destination, pages)?;
                self.check_use(source, pages);
                // The guest has just allocated and cleared that memory. It is still in its
                // processor's caches, and a copy past them takes longer.
                self.each_piece(destination, pages, &from, |piece, part| {
                    part.copy_to_volatile_slice(piece);
                })?;
                self.counters.bytes_to_system.add(bytes);
            }
            Kind::OnDevice => {
                let (from, to) = (device(source)?, device(destination)?);
                if source.abs_diff(destination) < pages {
                    return Err(Status::BadFrame);
                }
                self.check_use(source, pages);
                self.take_into_use(destination, pages);
                stream::copy(&from, &to);
                self.counters.bytes_on_device.add(bytes);
            }
            Kind::Clear => {
                let to = device(destination)?;
                self.take_into_use(destination, pages);
                memory::fill(&to, 0);
                self.counters.bytes_cleared.add(bytes);
            }
            Kind::Discard => {
                let frames = device(destination)?;
                let discarded = self.device.live().remove(destination, pages);
                match self.check {
                    Some(check) => {
                        check.discards(destination, pages);
                        check.overwrites(destination, pages);
                        memory::fill(&frames, POISON);
                        check.poisoned(destination, pages);
                    }
                    None => self.lingering.discarded(destination, pages),
                }
                self.counters.frames_discarded.add(discarded);
            }
        }
        Ok(())
    }

    // {dev-fetch-bounds}
    fn check_system(&self, frame: u64, pages: u64) -> Result<(), Status> {
        let known = self.system.contains(frame, pages);
        known.then_some(()).ok_or(Status::BadFrame)
    }

    /// A run of device frames is about to be written and holds data from now on.
    fn take_into_use(&self, frame: u64, pages: u64) {
        if let Some(check) = self.check {
            check.overwrites(frame, pages);
        }
        self.lingering.taken(frame, pages);
        self.device.live().insert(frame, pages);
    }

    fn check_use(&self, frame: u64, pages: u64) {
        if let Some(check) = self.check {
            check.used(frame, pages, format_args!("copied from"));
        }
    }

    /// Visits a run of the guest's frames piece by piece, each with the matching part of a run of
    /// device memory. {dev-region-alias}
    fn each_piece<'a>(
        &self,
        frame: u64,
        pages: u64,
        device: &VolatileSlice<'a>,
        mut visit: impl FnMut(VolatileSlice<'_>, VolatileSlice<'a>),
    ) -> Result<(), Status> {
        let mut done = 0;
        for piece in self.system.pieces(frame, pages) {
            let piece = piece.ok_or(Status::CopyFailed)?;
            let part = device
                .subslice(done, piece.len())
                .map_err(|_| Status::CopyFailed)?;
            done += piece.len();
            visit(piece, part);
        }
        Ok(())
    }
}
