//! The cost of an idle daemon.

use std::io::{self, BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use hmm_bench::{processor_share, resident_mebibytes, Bench, Better, Unit};
use rustix::process::{kill_process, Pid, Signal};

/// How long it is observed.
const WATCHED: Duration = Duration::from_secs(2);

/// Measures processor time and memory of the daemon, before any guest has connected.
pub(crate) fn measure(bench: &mut Bench) {
    bench.group("idle daemon");
    let daemon = Daemon::start();
    let mut once = |name: &str, unit, read: fn(u32) -> io::Result<f64>| {
        // One round is enough: another would only repeat the two seconds.
        let value = daemon
            .as_ref()
            .map_err(Clone::clone)
            .and_then(|daemon| read(daemon.child.id()).map_err(|error| error.to_string()));
        match value {
            Ok(value) => bench.gathered(name, (unit, Better::Lower), vec![value]),
            Err(error) => bench.figure(name, (unit, Better::Lower), || Err(error.clone())),
        }
    };
    once("processor time, no guest", Unit::Percent, |id| {
        processor_share(id, WATCHED)
    });
    once(
        "resident memory, no guest",
        Unit::Mebibytes,
        resident_mebibytes,
    );
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
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // If it cannot be signalled it has ended; then there is nothing to wait for.
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}
