//! The crate's side of the comparison, collected from its types and constants.
//!
//! `census.rs` ensures that it is complete.

use std::collections::BTreeSet;
use virtio_hmm_spec::uapi::dmirror::{self, protection, DmirrorCall, DmirrorCommand};
use virtio_hmm_spec::uapi::late::{self, LatePoint};
use virtio_hmm_spec::uapi::trace::Cause;
use virtio_hmm_spec::uapi::{self, migrate_flags, page_state, submit_flags, CALLS};
use virtio_hmm_spec::wire::command::{
    self, map_flags, query_flags, AnswerEntry, CancelEntry, FetchEntry, InitEntry, MapEntry,
    QueryResult, RangeEntry, ReplyHeader, Request, RequestHeader, Status,
};
use virtio_hmm_spec::wire::config::{self, capability, Config};
use virtio_hmm_spec::wire::dma::{DmaItem, ItemResult, Kind};
use virtio_hmm_spec::wire::fault::{self, Action, FaultHeader, FaultRecord, Reason};
use virtio_hmm_spec::wire::job::{self, JobDescriptor, JobReply, JobRequest};
use virtio_hmm_spec::wire::operation::{Description, Element, Operation};
use virtio_hmm_spec::wire::statistics::Statistics;
use virtio_hmm_spec::wire::{self, rights, Field, Layout, Queue, Values};

/// Everything that the text must describe.
pub(crate) struct Interface {
    pub(crate) structures: Vec<Structure>,
    pub(crate) operations: &'static [Description],
    /// Enumerations.
    pub(crate) enumerations: Vec<Set>,
    /// Constants, by module.
    pub(crate) constants: Vec<Set>,
    /// The calls with their numbers.
    pub(crate) calls: Set,
    /// The request codes of sets of calls, in the same order.
    pub(crate) request_codes: Vec<(&'static str, Vec<u32>)>,
    /// The errors that calls fail with.
    pub(crate) errors: Set,
    /// Every name that the text may use.
    pub(crate) names: BTreeSet<String>,
}

/// The layout of a structure.
pub(crate) struct Structure {
    pub(crate) name: &'static str,
    pub(crate) size: usize,
    pub(crate) fields: &'static [Field],
}

/// Named numbers.
#[derive(Clone)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) values: Vec<(&'static str, u64)>,
}

fn structure<T: Layout>() -> Structure {
    Structure {
        name: T::NAME,
        size: T::SIZE,
        fields: T::FIELDS,
    }
}

fn enumeration<T: Values>() -> Set {
    let values = T::VALUES
        .iter()
        .map(|&(name, value)| (name, value.into()))
        .collect();
    Set {
        name: T::NAME,
        values,
    }
}

/// The request codes of all calls of the kernel's tests, in the order of their numbers.
fn dmirror_codes() -> Vec<u32> {
    DmirrorCall::VALUES
        .iter()
        .filter_map(|&(_, number)| DmirrorCall::from_raw(number))
        .map(DmirrorCall::code)
        .collect()
}

/// The named constants of a module.
macro_rules! constants {
    ($($module:ident { $($name:ident),+ $(,)? })+) => { vec![ $( Set {
        name: stringify!($module),
        values: vec![ $( (stringify!($name), u64::try_from($module::$name).expect("positive")), )+ ],
    }, )+ ] };
}

macro_rules! errors {
    ($($name:ident),+ $(,)?) => {
        vec![ $( (stringify!($name), u64::try_from(libc::$name).expect("positive")), )+ ]
    };
}

impl Interface {
    /// The crate's definitions.
    pub(crate) fn of_the_crate() -> Self {
        let mut interface = Self {
            structures: vec![
                structure::<Config>(),
                structure::<RequestHeader>(),
                structure::<ReplyHeader>(),
                structure::<InitEntry>(),
                structure::<MapEntry>(),
                structure::<RangeEntry>(),
                structure::<AnswerEntry>(),
                structure::<CancelEntry>(),
                structure::<QueryResult>(),
                structure::<FetchEntry>(),
                structure::<DmaItem>(),
                structure::<ItemResult>(),
                structure::<JobDescriptor>(),
                structure::<JobRequest>(),
                structure::<JobReply>(),
                structure::<FaultHeader>(),
                structure::<FaultRecord>(),
                structure::<Statistics>(),
                structure::<uapi::Info>(),
                structure::<uapi::Bind>(),
                structure::<uapi::Submit>(),
                structure::<uapi::Wait>(),
                structure::<uapi::Cancel>(),
                structure::<uapi::WaitAny>(),
                structure::<uapi::BindProcess>(),
                structure::<uapi::SpaceCounters>(),
                structure::<uapi::Migrate>(),
                structure::<uapi::Residency>(),
                structure::<uapi::Counters>(),
                structure::<uapi::DriverStatistics>(),
                structure::<DmirrorCommand>(),
            ],
            operations: Operation::DESCRIPTIONS,
            enumerations: vec![
                enumeration::<Queue>(),
                enumeration::<Request>(),
                enumeration::<Status>(),
                enumeration::<Kind>(),
                enumeration::<Action>(),
                enumeration::<Reason>(),
                enumeration::<Element>(),
                enumeration::<uapi::DeviceState>(),
                enumeration::<uapi::Destination>(),
                enumeration::<DmirrorCall>(),
                enumeration::<LatePoint>(),
                enumeration::<Cause>(),
            ],
            constants: constants! {
                wire { DEVICE_ID, QUEUE_COUNT, PAGE_SHIFT, PAGE_BYTES, LARGE_ORDER, LARGE_PAGES }
                rights { READ, WRITE, ATOMIC, ALL }
                config { MAGIC, VERSION, MEMORY_REGION }
                capability { CHECK, COHERENT }
                map_flags { DEVICE, ALL }
                query_flags { PRESENT, ACCESSED, DIRTY }
                command { MAX_MAP_PAGES, MAX_FETCH_PAGES, MAX_QUERY_PAGES }
                job { MAX_ARGUMENTS }
                fault { MIN_BUFFER, STORM_RETRIES }
                uapi { VERSION, IOCTL_TYPE, MAX_DEVICES, MAX_SUBMIT, MAX_WAIT, MAX_RESIDENCY_PAGES }
                submit_flags { EVENTFD, ALL }
                migrate_flags { POPULATE }
                page_state { PLACE, NONE, SYSTEM, DEVICE, OTHER, WRITABLE, HUGE, MAPPED }
                late { MAX_DELAY, MAX_LATENESS, MAX_RULES }
                dmirror { IOCTL_TYPE, MAX_NODES, MAX_MAPPED_PAGES, FAIL_ALLOC }
                protection {
                    ERROR, NONE, READ, WRITE, PMD, PUD, ZERO, DEVICE_PRIVATE_LOCAL,
                    DEVICE_PRIVATE_REMOTE, DEVICE_COHERENT_LOCAL, DEVICE_COHERENT_REMOTE,
                }
            },
            calls: Set {
                name: "Call",
                values: CALLS
                    .iter()
                    .map(|&(number, name, _)| (name, number.into()))
                    .collect(),
            },
            request_codes: vec![
                ("Call", CALLS.iter().map(|&(_, _, code)| code).collect()),
                ("DmirrorCall", dmirror_codes()),
            ],
            errors: Set {
                name: "errno",
                values: errors![
                    ENOTTY, EFAULT, EINVAL, EBADF, EPROTO, EBUSY, EPERM, ENOSPC, EAGAIN, ENOENT,
                    ETIME, EINTR, ESRCH, EACCES, ENOMEM, ENODEV, EIO,
                ],
            },
            names: BTreeSet::new(),
        };
        interface.names = interface.all_names().collect();
        interface
    }

    fn all_names(&self) -> impl Iterator<Item = String> + '_ {
        let structures = self.structures.iter().flat_map(|structure| {
            let fields = structure.fields.iter().flat_map(move |field| {
                [
                    field.name.to_owned(),
                    format!("{}.{}", structure.name, field.name),
                ]
            });
            fields.chain([structure.name.to_owned()])
        });
        let operations = self.operations.iter().flat_map(|operation| {
            operation
                .arguments
                .iter()
                .map(|&(name, _)| name)
                .chain([operation.name])
        });
        let sets = self
            .sets()
            .flat_map(|set| set.values.iter().map(|&(name, _)| name).chain([set.name]));
        structures.chain(operations.chain(sets).map(str::to_owned))
    }

    /// Every set of named numbers.
    pub(crate) fn sets(&self) -> impl Iterator<Item = &Set> {
        self.enumerations
            .iter()
            .chain(&self.constants)
            .chain([&self.calls, &self.errors])
    }
}

/// A field's type as a listing writes it, and the number of its elements.
pub(crate) fn listed_type(field: &Field) -> (String, usize) {
    let element = field.type_name.trim_start_matches('[');
    let element = element
        .split_once(';')
        .map_or(element, |(element, _)| element)
        .trim();
    let (name, size) = match element {
        "U16" => ("le16".to_owned(), 2),
        "U32" => ("le32".to_owned(), 4),
        "U64" => ("le64".to_owned(), 8),
        "u32" | "i32" => (element.to_owned(), 4),
        "u64" | "i64" => (element.to_owned(), 8),
        structure => (format!("struct {structure}"), field.size),
    };
    (name, field.size / size)
}
