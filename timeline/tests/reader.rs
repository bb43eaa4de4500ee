//! What Perfetto's own definitions find in a timeline is what was put into it.
//!
//! `cargo xtask test` runs this with `PYTHONPATH` set to where Perfetto's package for Python is.

use std::process::Command;

use hmm_timeline::perfetto;
use hmm_timeline::together::Together;
use hmm_timeline::tracks::{Content, Detail, Slice, Tracks};
use serde_json::{json, Value};

/// A run of one job: a fault, moves in both directions, and a change that waits for the device.
const EVENTS: &str = include_str!("run/events");
const DEVICE: &str = include_str!("run/device.trace");

fn slice(slice: &Slice) -> Value {
    let details = slice.details.iter().map(|(name, detail)| {
        let value = match detail {
            Detail::Number(number) | Detail::Address(number) => json!(number),
            Detail::Word(word) => json!(word),
        };
        ((*name).to_owned(), value)
    });
    json!({
        "at": slice.begin,
        "lasted": slice.lasted,
        "name": slice.name,
        "flows": slice.flow.into_iter().collect::<Vec<_>>(),
        "details": details.collect::<serde_json::Map<_, _>>(),
    })
}

fn expected(tracks: &Tracks) -> Value {
    let tracks = tracks.groups.iter().flat_map(|group| {
        group.tracks.iter().map(|track| {
            let (counter, content): (_, Vec<_>) = match &track.content {
                Content::Slices(slices) => (false, slices.iter().map(slice).collect()),
                Content::Bytes(values) => {
                    let values = values.iter();
                    (
                        true,
                        values
                            .map(|(at, value)| json!({ "at": at, "value": value }))
                            .collect(),
                    )
                }
            };
            json!({
                "group": group.name,
                "name": track.name,
                "counter": counter,
                "content": content,
            })
        })
    });
    tracks.collect()
}

#[test]
fn perfettos_own_definitions_find_in_a_file_what_was_put_into_it() {
    let together = Together::read(EVENTS, [DEVICE]).unwrap();
    let tracks = together.tracks();
    assert_eq!(tracks.groups.len(), 2, "{}", together.text());
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("run.pftrace");
    std::fs::write(&file, perfetto::encode(&tracks)).unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reader.py");
    let output = Command::new("python3")
        .arg(script)
        .arg(&file)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let expected = expected(&tracks);
    let names = |value: &Value| -> Vec<Value> {
        let tracks = value.as_array().unwrap().iter();
        tracks.map(|track| track["name"].clone()).collect()
    };
    assert_eq!(names(&found), names(&expected));
    for (found, expected) in found
        .as_array()
        .unwrap()
        .iter()
        .zip(expected.as_array().unwrap())
    {
        assert_eq!(found, expected);
    }
    // It is no empty run.
    let all = found.to_string();
    for name in [
        "resolve",
        "invalidate",
        "collect",
        "fault",
        "to system, PAGEFAULT_CPU",
        "Map",
    ] {
        assert!(all.contains(&format!("\"{name}\"")), "{name}: {all}");
    }
}
