//! The command line of `hmm`, on a machine without a device.

use std::process::{Command, Output};

fn hmm(arguments: &[&str]) -> (Option<i32>, String) {
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new(env!("CARGO_BIN_EXE_hmm"))
        .args(["--device", "/dev/hmm-that-is-not-there"])
        .args(arguments)
        .output()
        .unwrap();
    let text = [stdout, stderr].concat();
    (status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn a_wrong_size_is_a_wrong_command_line_and_says_what_a_size_is() {
    for arguments in [
        ["run", "sort", "--size", "many"],
        ["run", "sort", "--size", "0"],
        ["bench", "--only", "jobs", "--largest=1X"],
    ] {
        let (status, text) = hmm(&arguments);
        assert_eq!(status, Some(2), "{arguments:?}: {text}");
        assert!(!text.contains("WRONG"), "{text}");
    }
    let (_, text) = hmm(&["run", "sort", "--size", "many"]);
    assert!(text.contains("64M") && text.contains("1024"), "{text}");
}

#[test]
fn a_device_that_is_not_there_is_an_error_and_no_wrong_answer() {
    let (status, text) = hmm(&["run", "sort", "--size", "1.5K"]);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("/dev/hmm-that-is-not-there"), "{text}");
    assert!(!text.contains("WRONG"), "{text}");
}

#[test]
fn the_help_of_a_watch_says_how_it_ends() {
    let (status, text) = hmm(&["stats", "--help"]);
    assert_eq!(status, Some(0));
    assert!(text.contains("Ctrl-C"), "{text}");
    assert!(text.contains("--times"), "{text}");
}

/// A granule is used eight times, and then another one: a device for one of them.
fn trace() -> tempfile::NamedTempFile {
    let mut text = "virtio-hmm page trace 1\n".to_owned();
    for _ in 0..8 {
        text += "r 0 16 65536 16\nw 100 1 64 1\n";
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, text).unwrap();
    file
}

#[test]
fn a_replay_says_for_each_policy_what_it_costs_beside_the_bound() {
    let file = trace();
    let path = file.path().to_str().unwrap();
    let shared = ["replay", path, "--capacity", "64K", "--link", "1M,1us"];
    let (status, text) = hmm(&shared);
    assert_eq!(status, Some(0), "{text}");
    for policy in [
        "never",
        "first-touch",
        "clock",
        "belady",
        "heat",
        "adaptive",
    ] {
        assert!(text.contains(policy), "{text}");
    }
    let lines = |extra: &[&str]| {
        let (status, text) = hmm(&[&shared[..], extra].concat());
        assert_eq!(status, Some(0), "{text}");
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let csv = lines(&["--csv", "--policy", "heat", "--policy", "never"]);
    assert_eq!(csv.len(), 3, "{csv:?}");
    assert!(csv[1].starts_with("heat,65536,131072,"), "{csv:?}");
    let json = lines(&["--json", "--policy", "heat"]);
    let verdict: serde_json::Value = serde_json::from_str(&json[0]).unwrap();
    // One move, and eight lines in place.
    assert_eq!(verdict["link_bytes"], 65_536 + 8 * 64);
    assert_eq!(verdict["bound"], 65_536 + 8 * 64);
    let unbounded = lines(&["--json", "--policy", "heat", "--no-bound"]);
    assert!(unbounded[0].contains("\"bound\":null"), "{unbounded:?}");

    let directory = tempfile::tempdir().unwrap();
    let picture = directory.path().join("run.svg");
    lines(&["--plot", picture.to_str().unwrap()]);
    let picture = std::fs::read_to_string(picture).unwrap();
    assert!(picture.contains("adaptive") && picture.contains("bound"));
    let (status, text) = hmm(&[&shared[..], &["--plot", "/nowhere/run.svg"]].concat());
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("writing /nowhere/run.svg"), "{text}");
}

#[test]
fn a_file_that_is_no_trace_and_a_device_without_room_are_told_of() {
    let (status, text) = hmm(&["replay", env!("CARGO_MANIFEST_PATH")]);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("no page trace"), "{text}");
    let file = trace();
    let path = file.path().to_str().unwrap();
    let (status, text) = hmm(&["replay", path, "--capacity", "4K"]);
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("no room"), "{text}");
}
