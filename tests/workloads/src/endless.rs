//! A job that does not end by itself, and how a process reports that it runs.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use hmm::{work, Space};

/// How long a job may take to begin, and a dead process to be forgotten: far more than either needs
/// on the slowest emulated machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// A process prints this when its job runs.
pub(crate) const RUNNING: &str = "running";

/// Runs a job that does not end by itself, and reports when it runs. Only a failure of the device
/// ends it, which is returned.
pub(crate) fn run_endless_job(space: &Space) -> Result<(), hmm::Error> {
    let counter = AtomicU64::new(0);
    space.scope(|scope| {
        let endless = scope.submit(work::atomic_add(&counter, 1, u64::MAX))?;
        let deadline = Instant::now() + TIMEOUT;
        while counter.load(Ordering::Relaxed) == 0 && Instant::now() < deadline {
            thread::yield_now();
        }
        if counter.load(Ordering::Relaxed) > 0 {
            report_running();
        }
        endless.wait().map(drop)
    })
}

/// Reports that the process has begun its part.
pub(crate) fn report_running() {
    let mut output = std::io::stdout().lock();
    // An error is ignored: a listener that misses the line has a limit of its own.
    let _ = writeln!(output, "{RUNNING}").and_then(|()| output.flush());
}
