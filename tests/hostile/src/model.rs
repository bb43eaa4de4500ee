//! The answers that the specification demands.
//!
//! A second implementation of the status ladder, written from the document and not from the device:
//! it computes the statuses that may answer a request. Of the device's state it knows only what the
//! answer depends on and the guest can know. If the guest cannot know something (is this frame
//! memory?), more than one status is right.

use std::collections::BTreeSet;

use virtio_hmm_spec::wire::command::{
    map_flags, AnswerEntry, CancelEntry, FetchEntry, InitEntry, MapEntry, RangeEntry, Request,
    RequestHeader, Status, MAX_FETCH_PAGES, MAX_MAP_PAGES, MAX_QUERY_PAGES,
};
use virtio_hmm_spec::wire::config::{Config, VERSION};
use virtio_hmm_spec::wire::dma::{DmaItem, Kind};
use virtio_hmm_spec::wire::fault::{Action, Reason};
use virtio_hmm_spec::wire::job::JobRequest;
use virtio_hmm_spec::wire::operation::{DecodeError, Operation};
use virtio_hmm_spec::wire::{rights, Queue, LARGE_ORDER, PAGE_BYTES, PAGE_SHIFT};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::machine::{Machine, Place};
use crate::request::reply_room;

/// Which answers are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    /// One of these is right.
    pub(crate) statuses: Vec<Status>,
    /// The right detail of a refusal; `None` if it depends on the status.
    pub(crate) entry: Option<u32>,
}

impl Expected {
    fn whole(status: Status) -> Self {
        Self {
            statuses: vec![status],
            entry: Some(0),
        }
    }
}

/// The verdict on one entry or item: empty if no status applies, else one of these.
type Verdict = Vec<Status>;

/// What the guest knows of the device's state.
#[derive(Debug)]
pub(crate) struct Model {
    config: Config,
    machine: Machine,
    ready: bool,
    spaces: BTreeSet<u32>,
}

impl Model {
    /// A device with these limits in this machine, after a reset.
    pub(crate) fn new(config: Config, machine: Machine) -> Self {
        Self {
            config,
            machine,
            ready: false,
            spaces: BTreeSet::new(),
        }
    }

    /// The answers that are right for a request on the control queue.
    pub(crate) fn control(&self, request: &[u8], room: usize) -> Expected {
        let Ok((header, entries)) = RequestHeader::ref_from_prefix(request) else {
            return Expected::whole(Status::Malformed);
        };
        let operation = match Request::from_raw(header.operation.get()) {
            None => return Expected::whole(Status::Unsupported),
            Some(Request::Copy) => return misplaced(&self.dma(request, room).0),
            Some(operation) => operation,
        };
        match operation {
            Request::Init => self.list(
                Queue::Control,
                header,
                entries,
                room,
                |entry: &InitEntry| {
                    if entry.reserved.get() != 0 {
                        vec![Status::Malformed]
                    } else if entry.version.get() != VERSION {
                        vec![Status::NotReady]
                    } else {
                        vec![]
                    }
                },
            ),
            Request::Map => self.list(Queue::Control, header, entries, room, |entry| {
                self.map(entry)
            }),
            Request::Unmap | Request::Protect => {
                self.list(Queue::Control, header, entries, room, |entry| {
                    self.range(entry)
                })
            }
            Request::Query => self.list(Queue::Control, header, entries, room, |entry| {
                self.query(entry)
            }),
            Request::Fetch => self.list(Queue::Control, header, entries, room, |entry| {
                self.fetch(entry)
            }),
            Request::Answer => self.list(Queue::Control, header, entries, room, answer),
            Request::Cancel => self.list(
                Queue::Control,
                header,
                entries,
                room,
                |_: &CancelEntry| vec![],
            ),
            Request::SpaceCreate | Request::SpaceDestroy | Request::Statistics | Request::Copy => {
                self.list(
                    Queue::Control,
                    header,
                    entries,
                    room,
                    |_: &CancelEntry| vec![],
                )
            }
        }
    }

    /// The answers that are right for each entry of a `Fetch` that is accepted.
    pub(crate) fn fetched(&self, request: &[u8]) -> Vec<Verdict> {
        let entries = request.get(size_of::<RequestHeader>()..).unwrap_or(&[]);
        let entries = <[FetchEntry]>::ref_from_bytes(entries).unwrap_or(&[]);
        let item = |entry: &FetchEntry| DmaItem {
            kind: Kind::ToSystem.raw().into(),
            pages: entry.pages,
            source: entry.source,
            destination: entry.destination,
        };
        entries
            .iter()
            .map(|entry| self.item(&item(entry)))
            .collect()
    }

    /// The answers that are right for a request on the dma queue, and, when it is accepted, for
    /// each of its items.
    pub(crate) fn dma(&self, request: &[u8], room: usize) -> (Expected, Vec<Verdict>) {
        let Ok((header, entries)) = RequestHeader::ref_from_prefix(request) else {
            return (Expected::whole(Status::Malformed), vec![]);
        };
        match Request::from_raw(header.operation.get()) {
            None => (Expected::whole(Status::Unsupported), vec![]),
            Some(Request::Copy) => {
                let whole = self.list(Queue::Dma, header, entries, room, |_: &DmaItem| vec![]);
                let items = <[DmaItem]>::ref_from_bytes(entries).unwrap_or(&[]);
                (whole, items.iter().map(|item| self.item(item)).collect())
            }
            Some(Request::Fetch) => {
                let fetch = |entry: &FetchEntry| self.fetch(entry);
                let whole = self.list(Queue::Dma, header, entries, room, fetch);
                (whole, self.fetched(request))
            }
            Some(_) => (misplaced(&self.control(request, room)), vec![]),
        }
    }

    /// The answers that are right for a job, whatever it does. `Ok` stands for every end of a job
    /// that was accepted.
    ///
    /// `names` are the jobs whose end has not been seen; the device may have ended them already.
    pub(crate) fn job(&self, request: &[u8], names: &BTreeSet<u64>) -> Vec<Status> {
        let Ok(request) = JobRequest::ref_from_bytes(request) else {
            return vec![Status::Malformed];
        };
        let accepted = |status| vec![status, Status::Ok];
        match Operation::decode(&request.descriptor) {
            Err(DecodeError::Unsupported) => vec![Status::Unsupported],
            Err(DecodeError::Malformed) => vec![Status::Malformed],
            Ok(_) if request.reserved.get() != 0 => vec![Status::Malformed],
            Ok(_) if !self.ready => vec![Status::NotReady],
            Ok(_) if names.len() >= index(self.config.max_jobs.get()) => accepted(Status::Limit),
            Ok(_) if !self.spaces.contains(&request.space.get()) => vec![Status::NoSpace],
            Ok(_) if names.contains(&request.job.get()) => accepted(Status::Exists),
            Ok(_) => vec![Status::Ok],
        }
    }

    /// Updates the state after a request that was answered with `Ok`.
    pub(crate) fn done(&mut self, request: &[u8]) {
        let Ok((header, _)) = RequestHeader::ref_from_prefix(request) else {
            return;
        };
        match Request::from_raw(header.operation.get()) {
            Some(Request::Init) => {
                self.ready = true;
                self.spaces.clear();
            }
            Some(Request::SpaceCreate) => {
                self.spaces.insert(header.space.get());
            }
            Some(Request::SpaceDestroy) => {
                self.spaces.remove(&header.space.get());
            }
            _ => {}
        }
    }

    /// The machine that the device is in.
    pub(crate) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Applies the ladder to a request as a whole and to all of its entries.
    fn list<E>(
        &self,
        queue: Queue,
        header: &RequestHeader,
        entries: &[u8],
        room: usize,
        judge: impl Fn(&E) -> Verdict,
    ) -> Expected
    where
        E: FromBytes + Immutable + IntoBytes,
    {
        let operation = Request::from_raw(header.operation.get());
        let count = header.count.get();
        let (spaced, counted) = shape(operation);
        let well_formed = header.flags.get() == 0
            && header.reserved.get() == 0
            && (spaced || header.space.get() == 0)
            && match counted {
                Count::None => count == 0,
                Count::One => count == 1,
                Count::Some => count != 0,
            }
            && entries.len() == index(count).saturating_mul(size_of::<E>())
            && room >= room_wanted(header, entries);
        if !well_formed {
            return Expected::whole(Status::Malformed);
        }
        let mut whole = self.whole(queue, header, operation);
        let too_many = match operation {
            Some(Request::Copy) => {
                pages(entries, |item: &DmaItem| item.pages.get())
                    > self.config.max_copy_pages.get().into()
            }
            Some(Request::Fetch) => {
                let most = match queue {
                    Queue::Dma => self.config.max_copy_pages.get().into(),
                    _ => MAX_FETCH_PAGES,
                };
                pages(entries, |entry: &FetchEntry| entry.pages.get()) > most
            }
            Some(Request::Map) => {
                pages(entries, |entry: &MapEntry| entry.pages.get()) > MAX_MAP_PAGES
            }
            _ => false,
        };
        if too_many {
            whole.push(Status::Limit);
        }
        // The device does not check the entries if there are too many.
        let items = match count > self.most(queue) {
            true => &[],
            false => <[E]>::ref_from_bytes(entries).unwrap_or(&[]),
        };
        let verdicts: Vec<Verdict> = items.iter().map(judge).collect();

        // If the guest cannot know what applies to an entry, several answers may be right: those up
        // to the first status that certainly applies.
        let ceiling = |verdict: &Verdict| {
            let open = verdict.is_empty() || verdict.contains(&Status::Ok);
            let highest = verdict.iter().map(|status| status.raw()).max();
            highest.filter(|_| !open)
        };
        let lowest_of_whole = whole.iter().map(|status| status.raw()).min();
        let bound = verdicts
            .iter()
            .filter_map(ceiling)
            .chain(lowest_of_whole)
            .min();
        let mut statuses: Vec<Status> = verdicts
            .iter()
            .flatten()
            .chain(&whole)
            .copied()
            .filter(|status| *status != Status::Ok)
            .filter(|status| bound.is_none_or(|bound| status.raw() <= bound))
            .collect();
        statuses.sort_by_key(|status| status.raw());
        statuses.dedup();
        if bound.is_none() {
            statuses.push(Status::Ok);
        }
        let entry = match statuses[..] {
            [only] => verdicts
                .iter()
                .position(|verdict| verdict.contains(&only))
                .map_or(Some(0), |position| u32::try_from(position).ok()),
            _ => None,
        };
        Expected { statuses, entry }
    }

    /// How many entries or items a request on a queue may have.
    fn most(&self, queue: Queue) -> u32 {
        match queue {
            Queue::Dma => self.config.max_items.get(),
            _ => self.config.max_entries.get(),
        }
    }

    /// The statuses that apply to a well-formed request before its entries are checked.
    fn whole(&self, queue: Queue, header: &RequestHeader, operation: Option<Request>) -> Verdict {
        let space = header.space.get();
        let known = self.spaces.contains(&space);
        let mut apply = Vec::new();
        if !self.ready && operation != Some(Request::Init) {
            apply.push(Status::NotReady);
        }
        if header.count.get() > self.most(queue) {
            apply.push(Status::Limit);
        }
        match operation {
            Some(Request::SpaceCreate) if space >= self.config.max_spaces.get() => {
                apply.push(Status::Limit);
            }
            Some(Request::SpaceCreate) if known => apply.push(Status::Exists),
            Some(Request::SpaceCreate) => {}
            _ if shape(operation).0 && !known => apply.push(Status::NoSpace),
            _ => {}
        }
        apply
    }

    fn map(&self, entry: &MapEntry) -> Verdict {
        let order = u32::from(entry.order.get());
        let leaf = if order == LARGE_ORDER {
            1 << LARGE_ORDER
        } else {
            1
        };
        let pages = u64::from(entry.pages.get());
        let flags = entry.flags.get();
        if pages == 0 {
            return vec![Status::Malformed];
        }
        if pages % leaf != 0 || !self.canonical(entry.address.get(), pages, leaf) {
            return vec![Status::BadAddress];
        }
        let frame = entry.frame.get();
        let place = if frame % leaf != 0 {
            Place::Outside
        } else if flags & map_flags::DEVICE != 0 {
            self.device_frames(frame, pages)
        } else {
            self.machine.frames(frame, pages)
        };
        let right = u32::from(flags) & rights::ALL;
        let bad_rights =
            right == 0 || flags & !map_flags::ALL != 0 || (order != 0 && order != LARGE_ORDER);
        let rest = if bad_rights {
            vec![Status::BadRights]
        } else {
            vec![]
        };
        match place {
            Place::Outside => vec![Status::BadFrame],
            Place::Inside => rest,
            Place::Unknown if bad_rights => vec![Status::BadFrame, Status::BadRights],
            Place::Unknown => vec![Status::BadFrame, Status::Ok],
        }
    }

    fn range(&self, entry: &RangeEntry) -> Verdict {
        let pages = entry.pages.get();
        if pages == 0 {
            vec![Status::Malformed]
        } else if self.canonical(entry.address.get(), pages, 1) {
            vec![]
        } else {
            vec![Status::BadAddress]
        }
    }

    fn fetch(&self, entry: &FetchEntry) -> Verdict {
        let pages = u64::from(entry.pages.get());
        if pages == 0 || entry.reserved.get() != 0 {
            vec![Status::Malformed]
        } else if self.canonical(entry.address.get(), pages, 1) {
            vec![]
        } else {
            vec![Status::BadAddress]
        }
    }

    fn query(&self, entry: &RangeEntry) -> Verdict {
        let mut apply = self.range(entry);
        if entry.pages.get() > MAX_QUERY_PAGES {
            apply.insert(0, Status::Limit);
            apply.truncate(1);
        }
        apply
    }

    fn item(&self, item: &DmaItem) -> Verdict {
        let (source, destination) = (item.source.get(), item.destination.get());
        let pages = u64::from(item.pages.get());
        if pages == 0 {
            return vec![Status::Malformed];
        }
        let Some(kind) = Kind::from_raw(item.kind.get()) else {
            return vec![Status::Unsupported];
        };
        let unread = matches!(kind, Kind::Clear | Kind::Discard);
        if unread && source != 0 {
            return vec![Status::Malformed];
        }
        let places = match kind {
            Kind::ToDevice => [
                self.machine.frames(source, pages),
                self.device_frames(destination, pages),
            ],
            Kind::ToSystem => [
                self.device_frames(source, pages),
                self.machine.frames(destination, pages),
            ],
            Kind::OnDevice if source.abs_diff(destination) < pages => {
                [Place::Outside, Place::Outside]
            }
            Kind::OnDevice => [
                self.device_frames(source, pages),
                self.device_frames(destination, pages),
            ],
            Kind::Clear | Kind::Discard => [Place::Inside, self.device_frames(destination, pages)],
        };
        if places.contains(&Place::Outside) {
            vec![Status::BadFrame]
        } else if places.contains(&Place::Unknown) {
            vec![Status::BadFrame, Status::Ok]
        } else {
            vec![Status::Ok]
        }
    }

    fn canonical(&self, address: u64, pages: u64, leaf: u64) -> bool {
        let end = pages
            .checked_mul(PAGE_BYTES)
            .and_then(|bytes| address.checked_add(bytes));
        address % (leaf * PAGE_BYTES) == 0
            && end.is_some_and(|end| end <= 1 << self.config.address_bits.get())
    }

    fn device_frames(&self, frame: u64, pages: u64) -> Place {
        let frames = self.config.device_memory.get() >> PAGE_SHIFT;
        match frame.checked_add(pages) {
            Some(end) if end <= frames => Place::Inside,
            _ => Place::Outside,
        }
    }
}

/// The sum of the pages of all entries.
fn pages<E>(entries: &[u8], of: impl Fn(&E) -> u32) -> u64
where
    E: FromBytes + Immutable,
{
    let entries = <[E]>::ref_from_bytes(entries).unwrap_or(&[]);
    entries.iter().map(|entry| u64::from(of(entry))).sum()
}

/// The answer to an operation on a queue that does not have it. If the request is malformed even on
/// its own queue, that comes first on the ladder.
fn misplaced(elsewhere: &Expected) -> Expected {
    let malformed = elsewhere.statuses.contains(&Status::Malformed);
    let certain = elsewhere.statuses == [Status::Malformed];
    let mut statuses = Vec::new();
    if malformed {
        statuses.push(Status::Malformed);
    }
    if !certain {
        statuses.push(Status::Unsupported);
    }
    Expected {
        statuses,
        entry: None,
    }
}

/// How many entries an operation takes.
enum Count {
    None,
    One,
    Some,
}

/// Whether an operation names a space, and how many entries it takes.
fn shape(operation: Option<Request>) -> (bool, Count) {
    match operation {
        Some(Request::Init) => (false, Count::One),
        Some(Request::SpaceCreate | Request::SpaceDestroy) => (true, Count::None),
        Some(Request::Map | Request::Unmap | Request::Protect | Request::Fetch) => {
            (true, Count::Some)
        }
        Some(Request::Query) => (true, Count::One),
        Some(Request::Statistics) | None => (false, Count::None),
        Some(Request::Answer | Request::Cancel | Request::Copy) => (false, Count::Some),
    }
}

fn answer(entry: &AnswerEntry) -> Verdict {
    let reason = entry.reason.get();
    let right = match Action::from_raw(entry.action.get()) {
        None => false,
        Some(Action::Retry) => reason == 0,
        Some(Action::Terminate) => Reason::from_raw(reason).is_some(),
    };
    if right {
        vec![]
    } else {
        vec![Status::Malformed]
    }
}

fn room_wanted(header: &RequestHeader, entries: &[u8]) -> usize {
    let mut request = header.as_bytes().to_vec();
    request.extend_from_slice(entries);
    reply_room(&request)
}

fn index(count: u32) -> usize {
    count.try_into().unwrap_or(usize::MAX)
}
