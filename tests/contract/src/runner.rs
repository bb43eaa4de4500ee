//! Runs rows in processes of their own, and checks the machine after each of them.
//!
//! It knows what a row may leave behind, not what the row does.

use std::fs;
use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use hmm::Device;
use hmm_cli::say;
use rustix::event::{poll, PollFd, PollFlags, Timespec};
use rustix::fs::{fcntl_setfl, OFlags};
use rustix::process::{kill_process_group, pidfd_open, Pid, PidfdFlags, Signal};
use serde::Serialize;

use crate::kernel;
use crate::row::{all, Outcome, Row};

/// The exit status of the kernel's own tests when they were skipped (`KSFT_SKIP`).
const SKIPPED: i32 = 4;

/// A row's verdict, as it is printed.
#[derive(Debug, Serialize)]
struct Verdict<'a> {
    row: &'a str,
    #[serde(flatten)]
    outcome: &'a Outcome,
    milliseconds: u128,
}

/// Runs the rows that these words name. Returns whether none was broken.
///
/// # Errors
///
/// When a word names no row, or the machine has no device.
pub(crate) fn run(words: &[String], json: bool, limit: Duration) -> Result<bool> {
    let mut chosen = Vec::new();
    for word in words {
        let before = chosen.len();
        // A whole name is that row alone, though another name may begin with it.
        let is_whole = all().any(|row| row.name == word);
        let is_meant = |row: &&Row| match is_whole {
            true => row.name == word,
            false => word == "all" || row.name.starts_with(word.as_str()),
        };
        chosen.extend(all().filter(is_meant));
        ensure!(chosen.len() > before, "no row is called {word}");
    }
    ensure!(!Device::list().is_empty(), "this machine has no device");

    let (mut kept, mut broken, mut others) = (0, Vec::new(), Vec::new());
    for row in chosen {
        let begun = Instant::now();
        let before = mistakes()?;
        let mut outcome = contain(row, limit);
        if outcome == Outcome::Kept {
            outcome = settle(&before, limit).into();
        }
        let verdict = Verdict {
            row: row.name,
            outcome: &outcome,
            milliseconds: begun.elapsed().as_millis(),
        };
        if json {
            say!("{}", serde_json::json!(verdict));
        } else {
            say!("{}", line(&verdict));
        }
        match outcome {
            Outcome::Kept => kept += 1,
            Outcome::Broken(_) => broken.push(row.name),
            Outcome::CannotRun(_) => others.push(row.name),
        }
    }
    if !json {
        say!(
            "{kept} kept, {} broken, {} cannot run",
            broken.len(),
            others.len()
        );
        for (what, names) in [("broken", &broken), ("cannot run", &others)] {
            if !names.is_empty() {
                say!("{what}: {}", names.join(" "));
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

/// Runs a row in a process group of its own. However it ends, the result is an outcome.
fn contain(row: &Row, limit: Duration) -> Outcome {
    match try_contain(row, limit) {
        Ok(outcome) => outcome,
        Err(error) => Outcome::Broken(format!("{error:#}")),
    }
}

fn try_contain(row: &Row, limit: Duration) -> Result<Outcome> {
    let mut command = Command::new("/proc/self/exe");
    let (status, text) = run_apart(row.name, command.args(["row", row.name]), limit)?;
    let last = text.lines().last().unwrap_or_default();
    match serde_json::from_str(last) {
        Ok(outcome) if status.success() => Ok(outcome),
        _ => bail!(
            "its process ended without a verdict: {status}: {}",
            text.trim()
        ),
    }
}

/// Runs a program as rows are run, and judges it by its end and by what it leaves. Prints the
/// verdict and returns whether all was right.
///
/// # Errors
///
/// When the machine has no device.
pub(crate) fn watch(program: &[String], limit: Duration) -> Result<bool> {
    let before = mistakes()?;
    let (first, arguments) = program.split_first().context("there is no program")?;
    let outcome = match run_apart(first, Command::new(first).args(arguments), limit) {
        Err(error) => Outcome::Broken(format!("{error:#}")),
        Ok((status, _)) if status.code() == Some(SKIPPED) => {
            Outcome::CannotRun("it has skipped what it was to do".into())
        }
        Ok((status, text)) if !status.success() => {
            let lines: Vec<_> = text.lines().collect();
            let last = lines[lines.len().saturating_sub(12)..].join("\n");
            Outcome::Broken(format!("{status}: {last}"))
        }
        Ok(_) => settle(&before, limit).into(),
    };
    say!("{}", serde_json::json!(outcome));
    Ok(!matches!(outcome, Outcome::Broken(_)))
}

/// Runs a program in a process group of its own. Returns how it ended and its output.
fn run_apart(name: &str, command: &mut Command, limit: Duration) -> Result<(ExitStatus, String)> {
    // Later lines of the kernel log belong to this program.
    let _ = fs::write("/dev/kmsg", format!("hmm-contract: {name}"));
    let mut process = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .env(kernel::LIMIT, limit.as_secs().to_string())
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
    // Kills its children, if it left any.
    let _ = kill_process_group(id, Signal::KILL);
    if !ended && !wait(&mut process, limit)? {
        bail!("it did not end within {limit:?} and cannot be killed:{stuck}");
    }
    let status = process.wait().context("reaping the row's process")?;
    let text = drain(output)?;
    if !ended {
        bail!("it did not end within {limit:?}:{stuck}");
    }
    Ok((status, text))
}

/// Waits for the end of a process. Returns whether it ended in time.
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

/// The output so far. Later output, by a process that still holds the pipe, is not waited for.
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

/// Where the threads of a process are in the kernel, as far as the kernel says.
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

/// The mistakes that checking devices and their drivers have noticed since they started.
fn mistakes() -> Result<Vec<String>> {
    let mut all = Vec::new();
    for path in Device::list() {
        let counters = Device::open(&path)?.counters()?;
        let (driver, device) = (counters.driver, counters.device);
        for (what, count) in [
            (
                "changes that could not wait for pages on the move",
                driver.changes_hurried.into(),
            ),
            ("accesses through stale translations", device.stale_accesses),
            ("uses of freed frames", device.freed_frame_uses),
        ] {
            all.push(format!("{}: {count} {what}", path.display()));
        }
    }
    Ok(all)
}

/// Waits until nothing of a row is left on any device, and checks that the devices have noticed no
/// mistake. Driver and kernel release a dead process in their own time, without an event; they get
/// as long as a row may take.
fn settle(before: &[String], limit: Duration) -> Result<()> {
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
                begun.elapsed() < limit,
                "{}: {count} {what} are left after {limit:?}",
                path.display()
            );
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    let after = mistakes()?;
    let new: Vec<_> = after
        .iter()
        .filter(|line| !before.contains(line))
        .map(String::as_str)
        .collect();
    ensure!(
        after == before,
        "devices and drivers noticed mistakes, since they were made: {}",
        new.join(", ")
    );
    Ok(())
}
