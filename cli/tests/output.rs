//! A program whose output cannot be written. The test starts itself as that program.

use std::env;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use hmm_cli::output::CLOSED;
use hmm_cli::{remark, say};

/// Set for the program.
const PROGRAM: &str = "HMM_CLI_TEST_PROGRAM";

/// As a test it does nothing. As the program it prints until it cannot.
#[test]
fn program() {
    if env::var_os(PROGRAM).is_some() {
        loop {
            say!("a line");
        }
    }
}

fn command(program: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--exact", program, "--nocapture"])
        .env(PROGRAM, "1")
        .stderr(Stdio::piped());
    command
}

#[test]
fn a_reader_that_goes_ends_the_program_without_a_word_and_without_success() {
    let mut child = command("program").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "a line"));
    drop(lines);
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert_eq!(status.code(), Some(CLOSED.into()));
    assert_eq!(String::from_utf8(stderr).unwrap(), "");
}

#[test]
fn a_full_disk_is_an_error_that_is_told() {
    // The harness prints before the program does, and needs an output that takes it.
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "\"$0\" --exact full --nocapture 2>&1 >/dev/null"])
        .arg(env::current_exe().unwrap())
        .env(PROGRAM, "1");
    let Output { status, stdout, .. } = shell.output().unwrap();
    assert_eq!(status.code(), Some(1));
    let told = String::from_utf8(stdout).unwrap();
    assert!(told.contains("error: writing the output"), "{told}");
    assert!(!told.contains("panicked"), "{told}");
}

/// As a test it does nothing. As the program it prints to a disk that is full.
#[test]
fn full() {
    if env::var_os(PROGRAM).is_some() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        rustix::stdio::dup2_stdout(&full).unwrap();
        say!("a line");
    }
}

/// As a test it does nothing. As the program it prints remarks, then a line.
#[test]
fn remarks() {
    if env::var_os(PROGRAM).is_some() {
        for _ in 0..1000 {
            remark!("a remark");
        }
        say!("the end");
    }
}

#[test]
fn a_remark_that_nobody_reads_is_no_error() {
    let mut child = command("remarks").stdout(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    assert!(said.contains("the end"), "{said}");
}
