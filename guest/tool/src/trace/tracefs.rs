//! The kernel's tracing, by its file system: an instance of our own, which disturbs no other.
//!
//! It knows the names of the driver's events, and nothing of what they say.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{bail, ensure, Context, Result};
use rustix::event::{poll, PollFd, PollFlags, Timespec};

/// Where the file system is, on systems of different ages.
const PLACES: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// The system that the driver's events belong to, and the beginning of their names.
const SYSTEM: &str = "virtio_hmm";

/// How long to wait for events before looking whether the trace is over.
const LOOK: Duration = Duration::from_millis(50);

/// How much is read at a time.
const BYTES: usize = 1 << 16;

/// An instance, until it is dropped.
pub(super) struct Instance {
    path: PathBuf,
    is_over: AtomicBool,
}

/// Where the instance's events come out.
pub(super) struct Pipe<'a> {
    file: File,
    instance: &'a Instance,
}

impl Instance {
    /// Makes an instance with buffers of so many bytes for each processor. Its clock is the
    /// monotonic one.
    pub(super) fn new(buffer: u64) -> Result<Self> {
        let place = PLACES
            .map(Path::new)
            .into_iter()
            .find(|place| place.join("instances").is_dir());
        let Some(place) = place else {
            bail!(
                "the kernel's tracing is not there; as root, `mount -t tracefs tracefs {}` makes \
                 it so, if the kernel has CONFIG_FTRACE and CONFIG_EVENT_TRACING",
                PLACES[0]
            );
        };
        ensure!(
            place.join("events").join(SYSTEM).is_dir(),
            "the driver's tracepoints are not there; is the module virtio_hmm loaded?"
        );
        let path = place
            .join("instances")
            .join(format!("hmm-{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| match error.kind() {
            ErrorKind::PermissionDenied => anyhow::anyhow!("only root may trace"),
            _ => anyhow::anyhow!("making {}: {error}", path.display()),
        })?;
        let instance = Self {
            path,
            is_over: AtomicBool::new(false),
        };
        instance.set("trace_clock", "mono")?;
        instance.set("buffer_size_kb", &(buffer >> 10).max(4).to_string())?;
        Ok(instance)
    }

    /// Traces these events of the driver, or all of them if none is named.
    pub(super) fn enable(&self, events: &[String]) -> Result<()> {
        let system = self.path.join("events").join(SYSTEM);
        if events.is_empty() {
            return self.set(&format!("events/{SYSTEM}/enable"), "1");
        }
        for event in events {
            let name = format!("{SYSTEM}_{event}");
            ensure!(
                system.join(&name).is_dir(),
                "there is no event {event}; there are {}",
                names(&system).join(", ")
            );
            self.set(&format!("events/{SYSTEM}/{name}/enable"), "1")?;
        }
        Ok(())
    }

    /// Opens the end of the pipe.
    pub(super) fn pipe(&self) -> Result<Pipe<'_>> {
        let path = self.path.join("trace_pipe");
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        Ok(Pipe {
            file,
            instance: self,
        })
    }

    /// Traces no more. What has been traced can still be read.
    pub(super) fn end(&self) {
        // Without it, there are a few more events.
        let _ = self.set("tracing_on", "0");
        self.is_over.store(true, Ordering::Release);
    }

    fn set(&self, file: &str, value: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, value).with_context(|| format!("writing {value} to {}", path.display()))
    }
}

/// The names of the events, without the system's.
fn names(system: &Path) -> Vec<String> {
    let entries = fs::read_dir(system).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| {
            let name = entry.file_name();
            Some(
                name.to_str()?
                    .strip_prefix(SYSTEM)?
                    .strip_prefix('_')?
                    .to_owned(),
            )
        })
        .collect();
    names.sort();
    names
}

impl Drop for Instance {
    fn drop(&mut self) {
        // It stays until the next start of the system if it cannot be removed.
        let _ = self.set("events/enable", "0");
        let _ = fs::remove_dir(&self.path);
    }
}

impl Pipe<'_> {
    /// Reads all that is traced, until the trace is over and nothing is left.
    pub(super) fn read_until_over(&mut self) -> io::Result<String> {
        let mut text = Vec::new();
        let mut piece = vec![0; BYTES];
        loop {
            // Looked at first: what was traced before is read below.
            let is_over = self.instance.is_over.load(Ordering::Acquire);
            match self.file.read(&mut piece) {
                Ok(bytes) if bytes > 0 => text.extend(piece.iter().take(bytes)),
                Ok(_) => return Ok(String::from_utf8_lossy(&text).into_owned()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    if is_over {
                        return Ok(String::from_utf8_lossy(&text).into_owned());
                    }
                    let time = Timespec::try_from(LOOK).map_err(io::Error::other)?;
                    let mut files = [PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::IN)];
                    poll(&mut files, Some(&time))?;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
