//! Where a machine keeps its logs.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// A directory for the logs of one machine, which outlives the machine.
#[derive(Clone, Debug)]
pub struct Logs {
    directory: PathBuf,
}

impl Logs {
    /// Makes a fresh directory for a machine called `name`.
    ///
    /// # Errors
    ///
    /// When it cannot be created.
    pub fn create(below: &Path, name: &str) -> Result<Self> {
        fs::create_dir_all(below).with_context(|| format!("creating {}", below.display()))?;
        // Other characters might have a meaning for a shell or for QEMU.
        let name: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("reading the clock")?
            .as_secs();
        // Directories sort by time; those of the same second are numbered.
        for number in 0_u32.. {
            let directory = below.join(format!("{seconds}-{name}-{number}"));
            match fs::create_dir(&directory) {
                Ok(()) => return Ok(Self { directory }),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("creating {}", directory.display()))
                }
            }
        }
        unreachable!("one of 2^32 names is free")
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the guest printed on its console.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.directory.join("console.log")
    }

    /// The guest's kernel log, as the agent forwarded it.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.directory.join("kernel.log")
    }

    /// What QEMU printed.
    #[must_use]
    pub fn qemu(&self) -> PathBuf {
        self.directory.join("qemu.log")
    }

    /// The command that started QEMU.
    #[must_use]
    pub fn command(&self) -> PathBuf {
        self.directory.join("qemu.sh")
    }

    /// What the daemon of a device printed.
    #[must_use]
    pub fn daemon(&self, device: usize) -> PathBuf {
        self.directory.join(format!("daemon{device}.log"))
    }

    /// The trace of a device, if it has one.
    #[must_use]
    pub fn trace(&self, device: usize) -> PathBuf {
        self.directory.join(format!("device{device}.trace"))
    }
}

/// The last lines of a log, for an error message.
#[must_use]
pub fn tail(log: &Path) -> String {
    /// Enough for the reason; the file has the rest.
    const LINES: usize = 15;
    let Ok(bytes) = fs::read(log) else {
        return String::new();
    };
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LINES);
    lines[from..]
        .iter()
        .map(|line| format!("    {}", line.trim_end()))
        .collect::<Vec<_>>()
        .join("\n")
}
