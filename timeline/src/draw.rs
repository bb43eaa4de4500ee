//! Tracks of what a guest and its devices did.
//!
//! A group of tracks for each device as the guest sees it: its jobs, its faults, each thread that
//! worked for it, and how much of its memory is in use. Beside it a group for the device itself: each
//! of its threads, and its jobs. A job's number leads from one to the other.

use std::collections::{BTreeMap, HashMap};

use crate::clocks::Difference;
use crate::device::{Device, Event as Did, Record};
use crate::guest::{kind_of_move, Event, Guest, What, STAGES};
use crate::tracks::{distribute, Content, Detail, Group, Slice, Track, Tracks};

/// The size of a page, in bytes.
const PAGE: u64 = 4096;

/// A device's records, and what brings them to the guest's clock.
pub struct Drawn<'a> {
    /// The device: `N` of `/dev/hmmN`.
    pub number: u32,
    /// Its records.
    pub device: &'a Device,
    /// How far its clock is from the guest's.
    pub difference: Difference,
}

/// Draws a guest and its devices, as far as these were traced.
#[must_use]
pub fn draw(guest: &Guest, devices: &[Drawn<'_>]) -> Tracks {
    let mut numbers: Vec<u32> = guest.events.iter().map(|event| event.device).collect();
    numbers.extend(devices.iter().map(|drawn| drawn.number));
    numbers.sort_unstable();
    numbers.dedup();
    let groups = numbers.into_iter().flat_map(|number| {
        let drawn = devices.iter().find(|drawn| drawn.number == number);
        let events = guest
            .events
            .iter()
            .filter(move |event| event.device == number);
        [Some(of_guest(number, events)), drawn.map(of_device)]
    });
    Tracks {
        groups: groups
            .flatten()
            .filter(|group| !group.tracks.is_empty())
            .collect(),
    }
}

/// A number for a job that is the same in guest and device.
fn flow(device: u32, job: u64) -> u64 {
    u64::from(device) << 48 | job & 0xffff_ffff_ffff
}

fn of_guest<'a>(number: u32, events: impl Iterator<Item = &'a Event>) -> Group {
    let mut jobs = Vec::new();
    let mut submitted: HashMap<u64, (u64, u64)> = HashMap::new();
    let mut faults = Vec::new();
    let mut used = Vec::new();
    let mut threads: BTreeMap<u32, (String, Vec<Slice>)> = BTreeMap::new();
    for event in events {
        let drawn = match &event.what {
            What::Submit { job, operation } => {
                submitted.insert(*job, (event.at, *operation));
                continue;
            }
            What::Complete { job, status } => {
                if let Some((begin, operation)) = submitted.remove(job) {
                    jobs.push(Slice {
                        begin,
                        lasted: Some(event.at.saturating_sub(begin)),
                        name: format!("job {job}"),
                        details: vec![
                            ("operation", Detail::Number(operation)),
                            ("status", Detail::Word(status.to_string())),
                        ],
                        flow: Some(flow(number, *job)),
                    });
                }
                continue;
            }
            What::Fault {
                job,
                address,
                access,
            } => {
                faults.push(Slice {
                    begin: event.at,
                    lasted: None,
                    name: "fault".into(),
                    details: vec![
                        ("job", Detail::Number(*job)),
                        ("address", Detail::Address(*address)),
                        ("access", Detail::Number(*access)),
                    ],
                    flow: None,
                });
                continue;
            }
            What::Migrate { used: frames, .. } => {
                used.push((event.at, frames.saturating_mul(PAGE)));
                moved(event)
            }
            _ => in_thread(event),
        };
        let (name, slices) = threads.entry(event.tid).or_default();
        name.clone_from(&event.task);
        slices.extend(drawn);
    }
    let mut tracks = distribute("jobs", jobs);
    tracks.extend(distribute("faults", faults));
    if !used.is_empty() {
        tracks.push(Track {
            name: "device memory in use".into(),
            content: Content::Bytes(used),
        });
    }
    for (tid, (name, slices)) in threads {
        tracks.extend(distribute(&format!("{name} {tid}"), slices));
    }
    Group {
        name: format!("guest, /dev/hmm{number}"),
        tracks,
    }
}

/// A slice of so many nanoseconds that ends with the event.
fn until(event: &Event, nanoseconds: u64, name: String) -> Slice {
    Slice {
        begin: event.at.saturating_sub(nanoseconds),
        lasted: Some(nanoseconds),
        name,
        details: Vec::new(),
        flow: None,
    }
}

/// What a thread of the guest has done, other than moves.
fn in_thread(event: &Event) -> Vec<Slice> {
    let slice = match &event.what {
        What::Resolve {
            address,
            faults,
            error,
            pages,
            retries,
            nanoseconds,
        } => {
            let name = if *faults > 0 { "resolve" } else { "map ahead" };
            let mut slice = until(event, *nanoseconds, name.into());
            slice.details = vec![
                ("address", Detail::Address(*address)),
                ("faults", Detail::Number(*faults)),
                ("pages", Detail::Number(*pages)),
                ("retries", Detail::Number(*retries)),
                ("error", Detail::Word(error.to_string())),
            ];
            slice
        }
        What::Invalidate {
            start,
            end,
            nanoseconds,
        } => {
            let mut slice = until(event, *nanoseconds, "invalidate".into());
            slice.details = range(*start, *end);
            slice
        }
        What::Change {
            start,
            end,
            event: why,
        } => Slice {
            begin: event.at,
            lasted: None,
            name: format!("change {why}"),
            details: range(*start, *end),
            flow: None,
        },
        _ => return Vec::new(),
    };
    vec![slice]
}

/// A move, with its stages. Between them, the thread may have been at other parts of the same move; the
/// stages are drawn as if it had not.
fn moved(event: &Event) -> Vec<Slice> {
    let What::Migrate {
        start,
        end,
        pages,
        to_device,
        cause,
        stages,
        ..
    } = &event.what
    else {
        return Vec::new();
    };
    let whole = stages
        .iter()
        .fold(0_u64, |sum, stage| sum.saturating_add(*stage));
    let mut slice = until(event, whole, kind_of_move(*to_device, cause));
    slice.details = range(*start, *end);
    slice.details.push(("pages", Detail::Number(*pages)));
    let mut begin = slice.begin;
    let mut slices = vec![slice];
    for (name, nanoseconds) in STAGES.iter().zip(stages) {
        if *nanoseconds > 0 {
            slices.push(Slice {
                begin,
                lasted: Some(*nanoseconds),
                name: (*name).into(),
                details: Vec::new(),
                flow: None,
            });
        }
        begin = begin.saturating_add(*nanoseconds);
    }
    slices
}

fn range(start: u64, end: u64) -> Vec<(&'static str, Detail)> {
    if start == end {
        return Vec::new();
    }
    vec![
        ("start", Detail::Address(start)),
        ("end", Detail::Address(end)),
    ]
}

fn of_device(drawn: &Drawn<'_>) -> Group {
    let number = drawn.number;
    let time = |record: &Record| drawn.difference.guest_time(record.at);
    let mut jobs = Vec::new();
    let mut queued: HashMap<u64, (u64, String)> = HashMap::new();
    let mut threads: BTreeMap<String, Vec<Slice>> = BTreeMap::new();
    for record in &drawn.device.records {
        match &record.event {
            Did::Queued { job, operation } => {
                queued.insert(*job, (time(record), operation.to_string()));
            }
            Did::Ended { job, how } => {
                if let Some((begin, operation)) = queued.remove(job) {
                    jobs.push(Slice {
                        begin,
                        lasted: Some(time(record).saturating_sub(begin)),
                        name: format!("{operation} {job}"),
                        details: vec![("ended", Detail::Word(how.to_string()))],
                        flow: Some(flow(number, *job)),
                    });
                }
            }
            _ => {
                let track = place(record);
                let mut slice = did(number, record);
                slice.begin = time(record);
                if let Some(space) = record.space {
                    slice.details.push(("space", Detail::Number(space.into())));
                }
                threads.entry(track).or_default().push(slice);
            }
        }
    }
    let mut tracks = distribute("jobs", jobs);
    for (thread, slices) in threads {
        tracks.extend(distribute(&thread, slices));
    }
    Group {
        name: format!("device, hmm{number}"),
        tracks,
    }
}

/// The track of a record: its queue, or else its thread. A queue has a thread, but others may move its
/// chains as well.
fn place(record: &Record) -> String {
    let group = match &record.event {
        Did::Request { queue, .. } => Some(queue.as_ref()),
        Did::Late { point } => point.split('.').next(),
        // Answers are requests of this queue.
        Did::Answer { .. } => Some("control"),
        _ => None,
    };
    match group {
        Some(queue @ ("control" | "dma" | "submit" | "fault")) => format!("{queue} queue"),
        _ => record.thread.to_string(),
    }
}

fn did(number: u32, record: &Record) -> Slice {
    let mut details = Vec::new();
    let mut flow_of = None;
    let (name, is_moment) = match &record.event {
        Did::Request { queue, operation } => {
            (operation.as_ref().unwrap_or(queue).to_string(), false)
        }
        Did::Turn { job, stop } => {
            details.push(("stop", Detail::Word(stop.to_string())));
            flow_of = Some(flow(number, *job));
            (format!("job {job}"), false)
        }
        Did::Fault {
            job,
            address,
            access,
        } => {
            details.push(("job", Detail::Number(*job)));
            details.push(("address", Detail::Address(*address)));
            details.push(("access", Detail::Number((*access).into())));
            ("fault".to_owned(), true)
        }
        Did::Answer { job, retry } => {
            details.push(("job", Detail::Number(*job)));
            let answer = if *retry { "retry" } else { "terminate" };
            (answer.to_owned(), true)
        }
        Did::Late { point } => (format!("late at {point}"), false),
        // These have tracks of their own, or are only counted.
        Did::Queued { .. } | Did::Ended { .. } | Did::Lost { .. } => (String::new(), true),
    };
    Slice {
        begin: 0,
        lasted: (!is_moment).then_some(record.lasted),
        name,
        details,
        flow: flow_of,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: &str = "\
 hmm-9 [001] ..... 1.000000: virtio_hmm_submit: device=0 space=0 job=3 operation=4
 kw-5 [000] ..... 1.000200: virtio_hmm_fault: device=0 space=0 job=3 address=0x1000 access=1 pages=1
 kw-5 [000] ..... 1.000300: virtio_hmm_resolve: device=0 space=0 address=0x1000 faults=1 error=0 pages=16 retries=1 nanoseconds=50000
 hmm-9 [001] ..... 1.000900: virtio_hmm_complete: device=0 space=0 job=3 status=0
 hmm-9 [001] ..... 1.002000: virtio_hmm_migrate: device=0 space=0 start=0x1000 end=0x3000 pages=2 huge=0 to=device cause=REQUEST collect=100 allocate=200 copy=300 commit=400 finalise=500 used=2
";

    fn device() -> Device {
        let record = |at, lasted, event| Record {
            at,
            lasted,
            thread: "engine 0".into(),
            space: Some(0),
            event,
        };
        Device {
            records: vec![
                record(
                    100,
                    0,
                    Did::Queued {
                        job: 3,
                        operation: "Fill".into(),
                    },
                ),
                record(
                    200,
                    5000,
                    Did::Turn {
                        job: 3,
                        stop: "ended".into(),
                    },
                ),
                record(
                    6000,
                    0,
                    Did::Ended {
                        job: 3,
                        how: "Ok".into(),
                    },
                ),
            ],
            lost: 0,
        }
    }

    fn track<'a>(tracks: &'a Tracks, group: &str, name: &str) -> &'a [Slice] {
        let group = tracks
            .groups
            .iter()
            .find(|other| other.name == group)
            .unwrap();
        let track = group
            .tracks
            .iter()
            .find(|other| other.name == name)
            .unwrap();
        match &track.content {
            Content::Slices(slices) => slices,
            Content::Bytes(_) => panic!("{name}"),
        }
    }

    #[test]
    fn a_job_leads_from_the_guest_to_the_device_and_lies_within() {
        let (guest, device) = (Guest::read(GUEST), device());
        let difference = Difference::find(&guest, 0, &device).unwrap();
        let drawn = Drawn {
            number: 0,
            device: &device,
            difference,
        };
        let tracks = draw(&guest, &[drawn]);
        let asked = &track(&tracks, "guest, /dev/hmm0", "jobs")[0];
        let done = &track(&tracks, "device, hmm0", "jobs")[0];
        let turn = &track(&tracks, "device, hmm0", "engine 0")[0];
        assert_eq!((asked.flow, asked.flow), (done.flow, turn.flow));
        assert!(asked.begin <= done.begin && done.end() <= asked.end() + 1000);
        assert!(done.begin <= turn.begin && turn.end() <= done.end());
        assert_eq!(done.name, "Fill 3");
    }

    #[test]
    fn a_move_has_its_stages_inside() {
        let tracks = draw(&Guest::read(GUEST), &[]);
        let slices = track(&tracks, "guest, /dev/hmm0", "hmm 9");
        let names: Vec<_> = slices.iter().map(|slice| slice.name.as_str()).collect();
        assert_eq!(names[..3], ["to device, REQUEST", "collect", "allocate"]);
        assert_eq!(slices[0].lasted, Some(1500));
        assert_eq!(slices[5].end(), slices[0].end());
        let memory = tracks.groups[0]
            .tracks
            .iter()
            .find_map(|track| match &track.content {
                Content::Bytes(bytes) => Some(bytes.clone()),
                Content::Slices(_) => None,
            });
        assert_eq!(memory.unwrap(), [(1_002_000_000, 8192)]);
    }

    #[test]
    fn a_resolved_fault_is_in_the_thread_that_resolved_it() {
        let tracks = draw(&Guest::read(GUEST), &[]);
        let resolve = &track(&tracks, "guest, /dev/hmm0", "kw 5")[0];
        assert_eq!(
            (resolve.name.as_str(), resolve.lasted),
            ("resolve", Some(50_000))
        );
        assert_eq!(resolve.end(), 1_000_300_000);
    }
}
