//! Rows in processes of their own, and what must be so after each of them.
//!
//! It knows what a row leaves behind, and nothing of what it does.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use hmm::Device;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::{fcntl_setfl, OFlags};
use rustix::process::{kill_process_group, pidfd_open, Pid, PidfdFlags, Signal};
use serde::Serialize;

use crate::row::{all, Outcome, Row};

/// How long what a row left may take to go: driver and kernel let go of a dead process in
/// their own time, for which there is no event.
const SETTLE: Duration = Duration::from_secs(20);

/// How long a killed row may take to be gone.
const DEATH: Duration = Duration::from_secs(10);

/// A row's verdict, as it is printed.
#[derive(Debug, Serialize)]
struct Verdict<'a> {
    row: &'a str,
    #[serde(flatten)]
    outcome: &'a Outcome,
    milliseconds: u128,
}

/// Runs the rows that these words name; says whether none was broken.
///
/// # Errors
///
/// When a word names no row, or the machine has no device.
pub(crate) fn run(words: &[String], json: bool, limit: Duration) -> Result<bool> {
    let mut chosen = Vec::new();
    for word in words {
        let before = chosen.len();
        let begins = |row: &&Row| word == "all" || row.name.starts_with(word.as_str());
        chosen.extend(all().filter(begins));
        ensure!(chosen.len() > before, "no row is called {word}");
    }
    ensure!(!Device::list().is_empty(), "this machine has no device");

    let (mut kept, mut broken, mut others) = (0, Vec::new(), Vec::new());
    for row in chosen {
        let begun = Instant::now();
        let before = mistakes()?;
        let mut outcome = contain(row, limit);
        if outcome == Outcome::Kept {
            outcome = settle(&before).into();
        }
        let verdict = Verdict {
            row: row.name,
            outcome: &outcome,
            milliseconds: begun.elapsed().as_millis(),
        };
        if json {
            println!("{}", serde_json::json!(verdict));
        } else {
            println!("{}", line(&verdict));
        }
        match outcome {
            Outcome::Kept => kept += 1,
            Outcome::Broken(_) => broken.push(row.name),
            Outcome::CannotRun(_) => others.push(row.name),
        }
    }
    if !json {
        println!(
            "{kept} kept, {} broken, {} cannot run",
            broken.len(),
            others.len()
        );
        for (what, names) in [("broken", &broken), ("cannot run", &others)] {
            if !names.is_empty() {
                println!("{what}: {}", names.join(" "));
            }
        }
    }
    Ok(broken.is_empty())
}

fn line(verdict: &Verdict<'_>) -> String {
    let (word, reason) = match verdict.outcome {
        Outcome::Kept => ("kept", ""),
        Outcome::Broken(reason) => ("BROKEN", reason.as_str()),
        Outcome::CannotRun(reason) => ("cannot run", reason.as_str()),
    };
    let milliseconds = verdict.milliseconds;
    format!(
        "{word:<10} {:<44} {milliseconds:>6} ms  {reason}",
        verdict.row
    )
    .trim_end()
    .to_owned()
}

/// Runs a row in a process group of its own; whatever becomes of that is an outcome.
fn contain(row: &Row, limit: Duration) -> Outcome {
    match try_contain(row, limit) {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Broken(format!("{error:#}")),
    }
}

fn try_contain(row: &Row, limit: Duration) -> Result<Outcome> {
    // Whatever the kernel says from here on belongs to this row.
    let _ = fs::write("/dev/kmsg", format!("hmm-contract: {}", row.name));
    let mut process = Command::new("/proc/self/exe")
        .args(["row", row.name])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .context("starting a process for the row")?;
    let id = Pid::from_child(&process);
    let output = process.stdout.take().context("its output is a pipe")?;
    let ended = wait(&mut process, limit)?;
    let stuck = if ended {
        String::new()
    } else {
        whereabouts(id)
    };
    // Its children, if it left any.
    let _ = kill_process_group(id, Signal::KILL);
    if !ended && !wait(&mut process, DEATH)? {
        bail!("it did not end within {limit:?} and cannot be killed:{stuck}");
    }
    let status = process.wait().context("reaping the row's process")?;
    let text = drain(output)?;
    if !ended {
        bail!("it did not end within {limit:?}:{stuck}");
    }
    let last = text.lines().last().unwrap_or_default();
    match serde_json::from_str(last) {
        Ok(outcome) if status.success() => Ok(outcome),
        _ => bail!(
            "its process ended without a verdict: {status}: {}",
            text.trim()
        ),
    }
}

/// Waits for the end of a process; says whether it came in time.
fn wait(process: &mut Child, limit: Duration) -> Result<bool> {
    let file = pidfd_open(Pid::from_child(process), PidfdFlags::empty())
        .context("a descriptor of the row's process")?;
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).context("a timeout")?;
        let mut files = [PollFd::new(&file, PollFlags::IN)];
        match poll(&mut files, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the row's process"),
        }
    }
}

/// What has been printed; not what a process prints later that holds the pipe still.
fn drain(mut output: ChildStdout) -> Result<String> {
    fcntl_setfl(output.as_fd(), OFlags::NONBLOCK).context("looking at the row's output")?;
    let mut bytes = Vec::new();
    match output.read_to_end(&mut bytes) {
        Err(error) if error.kind() != ErrorKind::WouldBlock => {
            Err(error).context("reading the row's output")
        }
        _ => Ok(String::from_utf8_lossy(&bytes).into_owned()),
    }
}

/// Where the threads of a process are in the kernel, as far as it tells.
fn whereabouts(id: Pid) -> String {
    let mut text = String::new();
    let tasks = format!("/proc/{}/task", id.as_raw_nonzero());
    for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let stack: Vec<_> = read("stack").lines().take(8).map(str::to_owned).collect();
        text.push_str(&format!(
            "\n{} {}: {}",
            read("comm").trim(),
            read("wchan"),
            stack.join(" ")
        ));
    }
    text
}

/// What checking devices have noticed since they were made.
fn mistakes() -> Result<Vec<String>> {
    let mut all = Vec::new();
    for path in Device::list() {
        let device = Device::open(&path)?.counters()?.device;
        for (what, count) in [
            ("accesses through stale translations", device.stale_accesses),
            ("uses of freed frames", device.freed_frame_uses),
        ] {
            all.push(format!("{}: {count} {what}", path.display()));
        }
    }
    Ok(all)
}

/// Waits until nothing of a row is left on any device, and checks that the devices have
/// noticed nothing wrong.
fn settle(before: &[String]) -> Result<()> {
    let begun = Instant::now();
    for path in Device::list() {
        let device = Device::open(&path)?;
        loop {
            let counters = device.counters()?;
            let left = [
                ("spaces of the driver", counters.driver.spaces),
                ("used frames", counters.driver.used_frames),
                ("spaces of the device", counters.device.spaces.get()),
                ("jobs", counters.device.jobs.get()),
                ("mapped pages", counters.device.mapped_pages.get()),
            ];
            let Some((what, count)) = left.into_iter().find(|(_, count)| *count > 0) else {
                break;
            };
            ensure!(
                begun.elapsed() < SETTLE,
                "{}: {count} {what} are left after {SETTLE:?}",
                path.display()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let after = mistakes()?;
    ensure!(
        after == before,
        "the devices noticed mistakes: {before:?}, then {after:?}"
    );
    Ok(())
}
