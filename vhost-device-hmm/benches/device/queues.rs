//! The way of a request through the rings: taken, decoded, carried out, answered.
//!
//! The rings are the daemon's, served by its own code. The driver's side uses the mock rings of
//! `virtio-queue`. Only sockets and threads are missing: a ring is served by the thread that kicks
//! it.

use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hmm_bench::{Bench, Per, Turn};
use vhost_device_hmm::backend::{Backend, GuestMemoryHandle, Options, Ring as DeviceRing};
use vhost_device_hmm::device::request::{Command, Outcome, Transfer};
use vhost_device_hmm::device::{Accelerator, DeviceConfig};
use vhost_user_backend::{VhostUserBackend, VringT};
use virtio_hmm_spec::wire::command::{
    InitEntry, MapEntry, QueryResult, RangeEntry, ReplyHeader, Request, RequestHeader, Status,
};
use virtio_hmm_spec::wire::config::VERSION;
use virtio_hmm_spec::wire::dma::{DmaItem, ItemResult, Kind};
use virtio_hmm_spec::wire::{Queue, PAGE_BYTES};
use virtio_queue::desc::{split::Descriptor, RawDescriptor};
use virtio_queue::mock::{AvailRing, DescriptorTable, UsedRing};
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::eventfd::{EventFd, EFD_NONBLOCK};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use crate::machine::{index, map_entry, Leaves, Machine, BASE};

/// Descriptors of a ring, two for each chain.
const DESCRIPTORS: u16 = 512;

/// The most chains at a time.
const CHAINS: u16 = DESCRIPTORS / 2;

/// Bytes of the guest's memory.
const MEMORY: u64 = 16 << 20;

/// The addresses of requests, of replies, and of a buffer for copies.
const REQUESTS: u64 = 4 << 20;
const REPLIES: u64 = 6 << 20;
const COPIES: u64 = 8 << 20;

/// The buffer size of a request, and of a reply.
const ROOM: u64 = 128;

/// A driver's flags of a descriptor.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// Bytes from the descriptor table to the available ring, and from there to the used one.
const RING: u64 = 64 << 10;

/// Requests in a round.
const REQUESTS_IN_A_ROUND: u64 = 8 << 10;

/// The space that is mapped, unmapped and looked up.
const SPACE: u32 = 3;

/// Measures requests of each kind, alone and in batches.
pub(crate) fn measure(bench: &mut Bench) {
    bench.group("requests through the rings");
    let memory =
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), index(MEMORY))]).expect("there is memory");
    let handle = GuestMemoryAtomic::new(memory.clone());
    let config = DeviceConfig {
        memory: 64 << 20,
        ..DeviceConfig::default()
    };
    let accelerator = Accelerator::new(config).expect("there is memory for a device");
    // The work is measured, not the polling for more.
    let options = Options {
        poll: Duration::ZERO,
        ..Options::default()
    };
    let backend = Backend::new(accelerator, options, handle.clone());
    backend
        .update_memory(handle.clone())
        .expect("the memory is there");
    let mut control = Ring::new(&memory, &handle, &backend, Queue::Control);
    let mut dma = Ring::new(&memory, &handle, &backend, Queue::Dma);
    for request in [
        request(Request::Init, 0, init().as_bytes()),
        request(Request::SpaceCreate, SPACE, &[]),
    ] {
        control.ask(&[request], 0).expect("the device starts");
    }
    let direct = Direct::new();
    let of_each = |kind, entry: &dyn Fn(usize) -> Vec<u8>| -> Vec<_> {
        let space = if kind == Request::Copy { 0 } else { SPACE };
        let requests = (0..usize::from(CHAINS)).map(|page| request(kind, space, &entry(page)));
        requests.collect()
    };
    let range = |page: usize| direct.ranges[page].as_bytes().to_vec();
    let maps = of_each(Request::Map, &|page| direct.maps[page].as_bytes().to_vec());
    let copies = of_each(Request::Copy, &|page| {
        direct.items[page].as_bytes().to_vec()
    });
    let unmaps = of_each(Request::Unmap, &range);
    let queries = of_each(Request::Query, &range);
    let reference = "without rings";
    for batch in [1, 16, CHAINS] {
        let of = |what: &str| match batch {
            1 => format!("{what}, one by one"),
            batch => format!("{what}, {batch} at a time"),
        };
        let per = Per::Times(REQUESTS_IN_A_ROUND);
        // Replaces the existing mapping.
        bench.pair(&of("map a page"), per, reference, |turn| match turn {
            Turn::Measured => control.round(&maps, batch, 0),
            Turn::Reference => direct.round(Direct::map),
        });
        let result = size_of::<QueryResult>();
        bench.pair(&of("look up a page"), per, reference, |turn| match turn {
            Turn::Measured => control.round(&queries, batch, result),
            Turn::Reference => direct.round(Direct::look_up),
        });
        bench.pair(&of("unmap a page"), per, reference, |turn| {
            let times = REQUESTS_IN_A_ROUND / u64::from(CHAINS);
            // Unmapped pages must be mapped again, which is not timed.
            let once = |_| match turn {
                Turn::Measured => {
                    control.each(&maps, CHAINS, 0)?;
                    control.each(&unmaps, batch, 0)
                }
                Turn::Reference => {
                    direct.each(Direct::map)?;
                    direct.each(Direct::unmap)
                }
            };
            (0..times).map(once).sum::<Result<Duration, String>>()
        });
        let result = size_of::<ItemResult>();
        bench.pair(
            &of("copy a page to the device"),
            per,
            reference,
            |turn| match turn {
                Turn::Measured => dma.round(&copies, batch, result),
                Turn::Reference => direct.round(Direct::copy),
            },
        );
    }
}

/// The same requests, passed to a device directly, without rings.
struct Direct {
    machine: Machine,
    maps: Vec<MapEntry>,
    ranges: Vec<RangeEntry>,
    items: Vec<DmaItem>,
}

impl Direct {
    fn new() -> Self {
        let machine = Machine::new();
        machine.execute(Command::SpaceCreate { space: SPACE });
        let pages = 0..u64::from(CHAINS);
        let address = |page| BASE + page * PAGE_BYTES;
        let range = |page| RangeEntry {
            address: U64::new(address(page)),
            pages: U64::new(1),
        };
        let item = |page| DmaItem {
            kind: U32::new(Kind::ToDevice.raw()),
            pages: U32::new(1),
            source: U64::new(COPIES / PAGE_BYTES + page % 64),
            destination: U64::new(page),
        };
        let map = |page| map_entry(address(page), page, 1, Leaves::Small);
        Self {
            machine,
            maps: pages.clone().map(map).collect(),
            ranges: pages.clone().map(range).collect(),
            items: pages.map(item).collect(),
        }
    }

    fn round(&self, one: fn(&Self, usize) -> Result<(), String>) -> Result<Duration, String> {
        let times = REQUESTS_IN_A_ROUND / u64::from(CHAINS);
        (0..times).map(|_| self.each(one)).sum()
    }

    fn each(&self, one: fn(&Self, usize) -> Result<(), String>) -> Result<Duration, String> {
        let start = Instant::now();
        (0..usize::from(CHAINS)).try_for_each(|page| one(self, page))?;
        Ok(start.elapsed())
    }

    fn execute(&self, command: Command<'_>) -> Result<(), String> {
        match self.machine.accelerator.execute(Ok(command)) {
            Outcome::Refused(refusal) => Err(format!("a request was refused: {refusal}")),
            _ => Ok(()),
        }
    }

    fn map(&self, page: usize) -> Result<(), String> {
        let (space, entries) = (SPACE, &self.maps[page..=page]);
        self.execute(Command::Map { space, entries })
    }

    fn unmap(&self, page: usize) -> Result<(), String> {
        let (space, ranges) = (SPACE, &self.ranges[page..=page]);
        self.execute(Command::Unmap { space, ranges })
    }

    fn look_up(&self, page: usize) -> Result<(), String> {
        let (space, range) = (SPACE, self.ranges[page]);
        self.execute(Command::Query { space, range })
    }

    fn copy(&self, page: usize) -> Result<(), String> {
        let items = &self.items[page..=page];
        let mut results = Vec::new();
        let done = self
            .machine
            .accelerator
            .transfer(Ok(Transfer::Copy { items }), &mut results);
        done.map_err(|refusal| format!("a copy was refused: {refusal}"))
    }
}

fn init() -> InitEntry {
    InitEntry {
        version: U32::new(VERSION),
        reserved: U32::ZERO,
    }
}

/// A request with at most one entry.
fn request(kind: Request, space: u32, entry: &[u8]) -> Vec<u8> {
    let header = RequestHeader {
        operation: U16::new(kind.raw()),
        flags: U16::ZERO,
        space: U32::new(space),
        count: U32::new(u32::from(!entry.is_empty())),
        reserved: U32::ZERO,
    };
    [header.as_bytes(), entry].concat()
}

/// A ring of the daemon with the driver's side of it.
struct Ring<'a> {
    queue: Queue,
    memory: &'a GuestMemoryMmap,
    backend: &'a Arc<Backend>,
    descriptors: DescriptorTable<'a, GuestMemoryMmap>,
    available: AvailRing<'a, GuestMemoryMmap>,
    used: UsedRing<'a, GuestMemoryMmap>,
    /// The address of the driver's `used_event`.
    event: GuestAddress,
    device: [DeviceRing; 1],
    /// The number of chains made available. All are waited for, so it is also the number returned.
    offered: u16,
    /// The interrupt of the daemon: its cost must be that with a guest.
    _interrupt: EventFd,
}

impl<'a> Ring<'a> {
    fn new(
        memory: &'a GuestMemoryMmap,
        handle: &GuestMemoryHandle,
        backend: &'a Arc<Backend>,
        queue: Queue,
    ) -> Self {
        // The rings are below the requests, far enough apart.
        let start = u64::from(queue.raw()) << 20;
        // `MockSplitQueue` lays out large rings so that they overlap.
        let [table, avail, used] = [0, RING, 2 * RING].map(|offset| GuestAddress(start + offset));
        let interrupt = EventFd::new(EFD_NONBLOCK).expect("an event");
        let device = DeviceRing::new(handle.clone(), DESCRIPTORS).expect("a queue");
        device.set_queue_size(DESCRIPTORS);
        device
            .set_queue_info(table.0, avail.0, used.0)
            .expect("addresses within memory");
        device.set_queue_event_idx(true);
        let call = interrupt.try_clone().expect("a descriptor").into_raw_fd();
        // SAFETY: the descriptor was just made and has no other owner.
        device.set_call(Some(unsafe { File::from_raw_fd(call) }));
        device.set_queue_ready(true);
        device.set_enabled(true);
        Self {
            queue,
            memory,
            backend,
            descriptors: DescriptorTable::new(memory, table, DESCRIPTORS),
            available: AvailRing::new(memory, avail, DESCRIPTORS),
            used: UsedRing::new(memory, used, DESCRIPTORS),
            event: GuestAddress(avail.0 + 4 + 2 * u64::from(DESCRIPTORS)),
            device: [device],
            offered: 0,
            _interrupt: interrupt,
        }
    }

    /// Makes some thousand requests, `batch` at a time.
    fn round(
        &mut self,
        requests: &[Vec<u8>],
        batch: u16,
        results: usize,
    ) -> Result<Duration, String> {
        let times = REQUESTS_IN_A_ROUND / requests.len() as u64;
        (0..times)
            .map(|_| self.each(requests, batch, results))
            .sum()
    }

    /// Makes each of the requests, `batch` at a time; returns the device's time for them.
    fn each(
        &mut self,
        requests: &[Vec<u8>],
        batch: u16,
        results: usize,
    ) -> Result<Duration, String> {
        let batches = requests.chunks(batch.into());
        batches.map(|batch| self.ask(batch, results)).sum()
    }

    /// Makes requests at once, whose replies have `results` bytes of results. Returns the device's
    /// time from the kick to the interrupt.
    fn ask(&mut self, requests: &[Vec<u8>], results: usize) -> Result<Duration, String> {
        let room = u32::try_from(size_of::<ReplyHeader>() + results).expect("little");
        for (request, chain) in requests.iter().zip(0..) {
            self.offer(chain, request, room);
        }
        let next = self
            .offered
            .wrapping_add(u16::try_from(requests.len()).expect("few"));
        // The driver wants an interrupt for the last one, as ours does.
        let wanted = next.wrapping_sub(1);
        self.offered = next;
        self.available.idx().store(next.to_le());
        self.memory
            .write_obj(wanted.to_le(), self.event)
            .expect("within memory");
        let start = Instant::now();
        let served =
            self.backend
                .handle_event(0, EventSet::IN, &self.device, self.queue.raw().into());
        let time = start.elapsed();
        served.map_err(|error| error.to_string())?;
        if u16::from_le(self.used.idx().load()) != next {
            return Err("not all requests were answered".into());
        }
        // The last reply is enough: the requests are alike.
        let last = REPLIES + ROOM * (requests.len() as u64 - 1);
        let mut reply = [0; size_of::<ReplyHeader>()];
        self.memory
            .read_slice(&mut reply, GuestAddress(last))
            .expect("within memory");
        let status = ReplyHeader::read_from_bytes(&reply).map(|reply| reply.status.get());
        if status != Ok(Status::Ok.raw()) {
            return Err(format!("a request was answered with {status:?}"));
        }
        Ok(time)
    }

    /// Writes a request into the ring, without updating the index.
    fn offer(&self, chain: u16, request: &[u8], room: u32) {
        let (from, to) = (
            REQUESTS + ROOM * u64::from(chain),
            REPLIES + ROOM * u64::from(chain),
        );
        self.memory
            .write_slice(request, GuestAddress(from))
            .expect("within memory");
        let head = 2 * chain;
        let length = u32::try_from(request.len()).expect("little");
        for (place, descriptor) in [
            (head, Descriptor::new(from, length, NEXT, head + 1)),
            (head + 1, Descriptor::new(to, room, WRITE, 0)),
        ] {
            self.descriptors
                .store(place, RawDescriptor::from(descriptor))
                .expect("within the table");
        }
        let place = self.offered.wrapping_add(chain) % DESCRIPTORS;
        let ring = self.available.ring();
        ring.ref_at(place.into())
            .expect("within the ring")
            .store(head.to_le());
    }
}
