//! What a daemon takes that has nothing to do.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{fs, thread};

use hmm_bench::{Bench, Better, Unit};
use rustix::param::clock_ticks_per_second;
use rustix::process::{kill_process, Pid, Signal};

/// How long it is watched.
const WATCHED: Duration = Duration::from_secs(2);

/// Measures processor time and memory of the daemon, before any guest has come.
pub(crate) fn measure(bench: &mut Bench) {
    bench.group("idle daemon");
    let mut daemon = match Daemon::start() {
        Ok(daemon) => Ok(daemon),
        Err(error) => Err(format!("the daemon does not start: {error}")),
    };
    let mut with = |read: fn(&Daemon) -> Result<f64, String>| match &mut daemon {
        Ok(daemon) => read(daemon),
        Err(error) => Err(error.clone()),
    };
    // One look is enough: the rounds would be the same two seconds once more.
    let mut once = |name, unit, read| match with(read) {
        Ok(value) => bench.gathered(name, (unit, Better::Lower), vec![value]),
        Err(error) => bench.figure(name, (unit, Better::Lower), || Err(error.clone())),
    };
    once("processor time", Unit::Percent, Daemon::processor_share);
    once("resident memory", Unit::Mebibytes, Daemon::resident);
}

/// A daemon that is killed when dropped.
struct Daemon {
    child: Child,
    _directory: tempfile::TempDir,
}

impl Daemon {
    fn start() -> Result<Self, String> {
        let text = |error: std::io::Error| error.to_string();
        let directory = tempfile::tempdir().map_err(text)?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_vhost-device-hmm"))
            .arg("--socket-path")
            .arg(directory.path().join("socket"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(text)?;
        let output = child.stderr.take();
        let daemon = Self {
            child,
            _directory: directory,
        };
        let output = BufReader::new(output.ok_or("its output is no pipe")?);
        let mut lines = output.lines().map_while(Result::ok);
        if lines.any(|line| line.contains("listening")) {
            Ok(daemon)
        } else {
            Err("it does not listen".into())
        }
    }

    /// The share of one processor that it takes, in percent.
    fn processor_share(&self) -> Result<f64, String> {
        let before = self.ticks()?;
        thread::sleep(WATCHED);
        let ticks = self.ticks()? - before;
        // A hundred or a thousand.
        #[expect(clippy::cast_precision_loss)]
        let rate = clock_ticks_per_second() as f64;
        Ok(100.0 * ticks / rate / WATCHED.as_secs_f64())
    }

    /// Processor time so far: user and system, in clock ticks.
    fn ticks(&self) -> Result<f64, String> {
        let fields = self.stat()?;
        // proc_pid_stat(5): utime and stime are fields 14 and 15, counted from 1; what
        // follows the name begins with field 3.
        let ticks = fields.split_ascii_whitespace().skip(14 - 3).take(2);
        ticks
            .map(|field| field.parse::<f64>().map_err(|error| error.to_string()))
            .sum()
    }

    fn stat(&self) -> Result<String, String> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))
            .map_err(|error| error.to_string())?;
        // The name stands in parentheses and may hold anything.
        let (_, fields) = stat.rsplit_once(") ").ok_or("stat has no name")?;
        Ok(fields.to_owned())
    }

    /// Memory that it has taken, in MiB.
    fn resident(&self) -> Result<f64, String> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))
            .map_err(|error| error.to_string())?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kibibytes: f64 = line
            .and_then(|rest| rest.split_ascii_whitespace().next()?.parse().ok())
            .ok_or("its status does not say")?;
        Ok(kibibytes / 1024.0)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // If it cannot be asked it has ended; then there is nothing to wait for either.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}
