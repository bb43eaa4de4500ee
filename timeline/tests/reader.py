"""Reads a timeline by Perfetto's own definitions, and prints what is in it as JSON."""

import json
import sys

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as perfetto


def read(path):
    trace = perfetto.Trace()
    with open(path, "rb") as file:
        trace.ParseFromString(file.read())
    groups, tracks = {}, {}
    for packet in trace.packet:
        if packet.HasField("track_descriptor"):
            descriptor = packet.track_descriptor
            if descriptor.HasField("parent_uuid"):
                counter = descriptor.HasField("counter")
                if counter:
                    assert descriptor.counter.unit == perfetto.CounterDescriptor.UNIT_SIZE_BYTES
                tracks[descriptor.uuid] = {
                    "group": groups[descriptor.parent_uuid],
                    "name": descriptor.name,
                    "counter": counter,
                    "open": [],
                    "content": [],
                }
            else:
                groups[descriptor.uuid] = descriptor.name
        elif packet.HasField("track_event"):
            put(tracks[packet.track_event.track_uuid], packet.timestamp, packet.track_event)
        else:
            raise ValueError(f"a packet of another kind: {packet}")
        assert packet.trusted_packet_sequence_id != 0, packet
    for track in tracks.values():
        assert not track.pop("open"), f"a slice of {track['name']} has no end"
    return list(tracks.values())


def put(track, at, event):
    kind = perfetto.TrackEvent.Type.Name(event.type)
    if kind == "TYPE_COUNTER":
        track["content"].append({"at": at, "value": event.counter_value})
        return
    if kind == "TYPE_SLICE_END":
        begun = track["open"].pop()
        begun["lasted"] = at - begun["at"]
        return
    slice = {
        "at": at,
        "lasted": None,
        "name": event.name,
        "flows": list(event.flow_ids),
        "details": {annotation.name: value(annotation) for annotation in event.debug_annotations},
    }
    track["content"].append(slice)
    if kind == "TYPE_SLICE_BEGIN":
        track["open"].append(slice)
    else:
        assert kind == "TYPE_INSTANT", kind


def value(annotation):
    field = annotation.WhichOneof("value")
    return getattr(annotation, field)


json.dump(read(sys.argv[1]), sys.stdout)
