//! Files that Perfetto (<https://ui.perfetto.dev>) opens.
//!
//! The messages are the part that is needed of Perfetto's own definitions
//! (`protos/perfetto/trace/trace.proto` and what it imports), with the same numbers.

use prost::Message;

use crate::tracks::{Content, Detail, Slice, Tracks};

/// All packets of this program belong to one sequence.
const SEQUENCE: u32 = 1;

#[derive(Clone, PartialEq, Message)]
struct Trace {
    #[prost(message, repeated, tag = "1")]
    packet: Vec<Packet>,
}

#[derive(Clone, PartialEq, Message)]
struct Packet {
    #[prost(uint64, optional, tag = "8")]
    timestamp: Option<u64>,
    #[prost(uint32, tag = "10")]
    trusted_packet_sequence_id: u32,
    #[prost(message, optional, tag = "11")]
    track_event: Option<TrackEvent>,
    #[prost(message, optional, tag = "60")]
    track_descriptor: Option<TrackDescriptor>,
}

#[derive(Clone, PartialEq, Message)]
struct TrackDescriptor {
    #[prost(uint64, tag = "1")]
    uuid: u64,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(uint64, optional, tag = "5")]
    parent_uuid: Option<u64>,
    #[prost(message, optional, tag = "8")]
    counter: Option<CounterDescriptor>,
    /// Keeps the order of the descriptors.
    #[prost(int32, optional, tag = "11")]
    child_ordering: Option<i32>,
    #[prost(int32, optional, tag = "12")]
    sibling_order_rank: Option<i32>,
}

/// `TrackDescriptor.ChildTracksOrdering.EXPLICIT`.
const EXPLICIT: i32 = 3;

#[derive(Clone, PartialEq, Message)]
struct CounterDescriptor {
    #[prost(int32, tag = "3")]
    unit: i32,
}

/// `CounterDescriptor.Unit.UNIT_SIZE_BYTES`.
const UNIT_SIZE_BYTES: i32 = 3;

#[derive(Clone, PartialEq, Message)]
struct TrackEvent {
    #[prost(message, repeated, tag = "4")]
    debug_annotations: Vec<DebugAnnotation>,
    #[prost(int32, tag = "9")]
    kind: i32,
    #[prost(uint64, tag = "11")]
    track_uuid: u64,
    #[prost(string, optional, tag = "23")]
    name: Option<String>,
    #[prost(int64, optional, tag = "30")]
    counter_value: Option<i64>,
    #[prost(fixed64, repeated, packed = "false", tag = "47")]
    flow_ids: Vec<u64>,
}

/// `TrackEvent.Type`.
const SLICE_BEGIN: i32 = 1;
const SLICE_END: i32 = 2;
const INSTANT: i32 = 3;
const COUNTER: i32 = 4;

#[derive(Clone, PartialEq, Message)]
struct DebugAnnotation {
    #[prost(string, optional, tag = "10")]
    name: Option<String>,
    #[prost(uint64, optional, tag = "3")]
    uint_value: Option<u64>,
    #[prost(string, optional, tag = "6")]
    string_value: Option<String>,
    #[prost(uint64, optional, tag = "7")]
    pointer_value: Option<u64>,
}

/// The bytes of a file with these tracks.
#[must_use]
pub fn encode(tracks: &Tracks) -> Vec<u8> {
    let mut trace = Trace::default();
    let mut uuid = 0;
    let mut next = || {
        uuid += 1;
        uuid
    };
    for (rank, group) in (0..).zip(&tracks.groups) {
        let parent = next();
        describe(&mut trace, parent, &group.name, |descriptor| {
            descriptor.child_ordering = Some(EXPLICIT);
            descriptor.sibling_order_rank = Some(rank);
        });
        for (rank, track) in (0..).zip(&group.tracks) {
            let uuid = next();
            describe(&mut trace, uuid, &track.name, |descriptor| {
                descriptor.parent_uuid = Some(parent);
                descriptor.sibling_order_rank = Some(rank);
                if let Content::Bytes(_) = track.content {
                    let unit = UNIT_SIZE_BYTES;
                    descriptor.counter = Some(CounterDescriptor { unit });
                }
            });
            match &track.content {
                Content::Slices(slices) => put_slices(&mut trace, uuid, slices),
                Content::Bytes(values) => {
                    for (at, bytes) in values {
                        let mut event = event(uuid, COUNTER);
                        event.counter_value = i64::try_from(*bytes).ok();
                        put(&mut trace, *at, event);
                    }
                }
            }
        }
    }
    trace.encode_to_vec()
}

fn describe(trace: &mut Trace, uuid: u64, name: &str, finish: impl FnOnce(&mut TrackDescriptor)) {
    let mut descriptor = TrackDescriptor {
        uuid,
        name: name.to_owned(),
        ..TrackDescriptor::default()
    };
    finish(&mut descriptor);
    trace.packet.push(Packet {
        trusted_packet_sequence_id: SEQUENCE,
        track_descriptor: Some(descriptor),
        ..Packet::default()
    });
}

fn event(track_uuid: u64, kind: i32) -> TrackEvent {
    TrackEvent {
        kind,
        track_uuid,
        ..TrackEvent::default()
    }
}

fn put(trace: &mut Trace, at: u64, event: TrackEvent) {
    trace.packet.push(Packet {
        timestamp: Some(at),
        trusted_packet_sequence_id: SEQUENCE,
        track_event: Some(event),
        track_descriptor: None,
    });
}

/// Puts slices that only contain each other, in the order in which they begin: each ends before what
/// begins later.
fn put_slices(trace: &mut Trace, uuid: u64, slices: &[Slice]) {
    let mut open: Vec<u64> = Vec::new();
    let close = |trace: &mut Trace, open: &mut Vec<u64>, until: u64| {
        while let Some(end) = open.pop_if(|end| *end <= until) {
            put(trace, end, event(uuid, SLICE_END));
        }
    };
    for slice in slices {
        close(trace, &mut open, slice.begin);
        let mut begin = event(
            uuid,
            if slice.lasted.is_some() {
                SLICE_BEGIN
            } else {
                INSTANT
            },
        );
        begin.name = Some(slice.name.clone());
        begin.flow_ids.extend(slice.flow);
        begin.debug_annotations = slice.details.iter().map(annotation).collect();
        put(trace, slice.begin, begin);
        if slice.lasted.is_some() {
            open.push(slice.end());
        }
    }
    close(trace, &mut open, u64::MAX);
}

fn annotation((name, detail): &(&'static str, Detail)) -> DebugAnnotation {
    let mut annotation = DebugAnnotation {
        name: Some((*name).to_owned()),
        ..DebugAnnotation::default()
    };
    match detail {
        Detail::Number(number) => annotation.uint_value = Some(*number),
        Detail::Address(address) => annotation.pointer_value = Some(*address),
        Detail::Word(word) => annotation.string_value = Some(word.clone()),
    }
    annotation
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tracks::{Group, Track};

    fn slice(begin: u64, lasted: Option<u64>, name: &str) -> Slice {
        Slice {
            begin,
            lasted,
            name: name.into(),
            details: vec![("pages", Detail::Number(7))],
            flow: Some(5),
        }
    }

    #[test]
    fn slices_end_from_the_inside_and_before_what_begins_later() {
        let slices = vec![
            slice(0, Some(10), "outer"),
            slice(2, Some(3), "inner"),
            slice(4, None, "moment"),
            slice(5, Some(5), "later"),
        ];
        let tracks = Tracks {
            groups: vec![Group {
                name: "g".into(),
                tracks: vec![Track {
                    name: "t".into(),
                    content: Content::Slices(slices),
                }],
            }],
        };
        let trace = Trace::decode(&*encode(&tracks)).unwrap();
        let events: Vec<_> = trace
            .packet
            .iter()
            .filter_map(|packet| {
                let event = packet.track_event.as_ref()?;
                Some((
                    packet.timestamp?,
                    event.kind,
                    event.name.clone().unwrap_or_default(),
                ))
            })
            .collect();
        let expected = [
            (0, SLICE_BEGIN, "outer"),
            (2, SLICE_BEGIN, "inner"),
            (4, INSTANT, "moment"),
            (5, SLICE_END, ""),
            (5, SLICE_BEGIN, "later"),
            (10, SLICE_END, ""),
            (10, SLICE_END, ""),
        ];
        assert_eq!(
            events,
            expected.map(|(at, kind, name)| (at, kind, name.to_owned()))
        );
        let [group, track] = [&trace.packet[0], &trace.packet[1]]
            .map(|packet| packet.track_descriptor.clone().unwrap());
        assert_eq!(track.parent_uuid, Some(group.uuid));
    }
}
