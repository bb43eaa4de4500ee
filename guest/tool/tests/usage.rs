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
