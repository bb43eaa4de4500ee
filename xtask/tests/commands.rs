//! Whole commands, as a user types them, that neither build nor boot anything.

use std::process::{Command, Output, Stdio};

fn xtask() -> Command {
    Command::new(env!("CARGO_BIN_EXE_xtask"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_command_whose_reader_is_gone_ends_quietly() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = xtask()
        .args(["setup", "--print-cache-key"])
        .stdout(writer)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
        .wait_with_output()
        .unwrap();
    assert_eq!(text(&output.stderr), "");
    assert_eq!(output.status.code(), Some(141), "as a closed pipe kills");
}

#[test]
fn a_look_at_what_could_be_cleaned_makes_no_directory() {
    let directory = tempfile::tempdir().unwrap();
    let cache = directory.path().join("cache");
    let output = xtask()
        .args(["clean", "--dry-run"])
        .env("VIRTIO_HMM_CACHE", &cache)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stdout).contains("0.0 GB would be freed"));
    assert!(!cache.exists());
}

#[test]
fn an_archive_that_is_not_there_is_named_and_nothing_is_prepared() {
    let directory = tempfile::tempdir().unwrap();
    let output = xtask()
        .args(["setup", "--import", "absent.tar.zst"])
        .env("VIRTIO_HMM_CACHE", directory.path())
        .output()
        .unwrap();
    let Output { status, stderr, .. } = output;
    assert_eq!(status.code(), Some(1));
    assert!(
        text(&stderr).contains("absent.tar.zst"),
        "{}",
        text(&stderr)
    );
    assert!(!text(&stderr).contains("making the toolbox"));
}

#[test]
fn memory_that_no_machine_can_have_is_a_wrong_command_line() {
    for (line, told) in [
        (["vm", "--memory", "64M"], "--memory"),
        (["vm", "--device-memory", "3M"], "--device-memory"),
        (["vm", "--device-memory", "lots"], "64M"),
        (["vm", "--daemon-log", "loud"], "trace"),
    ] {
        let output = xtask().args(line).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{line:?}");
        let stderr = text(&output.stderr);
        assert!(stderr.contains(told), "{line:?}: {stderr}");
    }
}
