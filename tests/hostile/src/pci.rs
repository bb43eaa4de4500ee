//! A PCI function as root sees it in sysfs: its configuration space, its BARs and its driver.
//!
//! It knows nothing of virtio beyond the two numbers that the caller searches for.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{bail, Context, Result};
use vm_memory::{FileOffset, MmapRegion};

const DEVICES: &str = "/sys/bus/pci/devices";

// PCI Local Bus Specification 3.0, 6.1 and 6.7.
const VENDOR: u64 = 0x00;
const DEVICE: u64 = 0x02;
const COMMAND: u64 = 0x04;
const STATUS: u64 = 0x06;
const CAPABILITIES: u64 = 0x34;

const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;
const COMMAND_NO_INTX: u16 = 1 << 10;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// The most capabilities that a configuration space of 256 bytes can hold.
const MOST_CAPABILITIES: usize = 48;

/// One function without a driver.
#[derive(Debug)]
pub(crate) struct Function {
    directory: PathBuf,
    config: File,
}

/// One capability: its offset and kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capability {
    /// Offset of its first byte in the configuration space.
    pub(crate) at: u64,
    /// Its kind.
    pub(crate) id: u8,
}

impl Function {
    /// Unbinds the function with these ids from its driver and opens it.
    ///
    /// # Errors
    ///
    /// When there is no such function or the kernel does not release it.
    pub(crate) fn take(vendor: u16, device: u16) -> Result<Self> {
        for entry in fs::read_dir(DEVICES).with_context(|| format!("reading {DEVICES}"))? {
            let directory = entry?.path();
            let function = Self::open(directory)?;
            if function.read_u16(VENDOR)? == vendor && function.read_u16(DEVICE)? == device {
                function.release_from_driver()?;
                return Ok(function);
            }
        }
        bail!("this machine has no PCI function {vendor:04x}:{device:04x}");
    }

    fn open(directory: PathBuf) -> Result<Self> {
        let path = directory.join("config");
        let config = OpenOptions::new()
            .read(true)
            .write(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        Ok(Self { directory, config })
    }

    fn release_from_driver(&self) -> Result<()> {
        let name = self.directory.file_name().unwrap_or_default();
        let unbind = self.directory.join("driver/unbind");
        match fs::write(&unbind, name.as_encoded_bytes()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.with_context(|| format!("writing {}", unbind.display())),
        }
    }

    /// The function's name on the bus.
    pub(crate) fn name(&self) -> String {
        self.directory
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned()
    }

    /// Lets the function decode its memory and access the machine's.
    ///
    /// Its interrupt stays off: it would not be handled, and the kernel would report that.
    ///
    /// # Errors
    ///
    /// When the configuration space cannot be accessed.
    pub(crate) fn enable(&self) -> Result<()> {
        let command = self.read_u16(COMMAND)? | COMMAND_MEMORY | COMMAND_MASTER | COMMAND_NO_INTX;
        self.config
            .write_all_at(&command.to_le_bytes(), COMMAND)
            .context("enabling the PCI function")
    }

    /// The function's capabilities in the order of its list.
    ///
    /// # Errors
    ///
    /// When the configuration space cannot be read or the list is endless.
    pub(crate) fn capabilities(&self) -> Result<Vec<Capability>> {
        let mut found = Vec::new();
        if self.read_u16(STATUS)? & STATUS_CAPABILITIES == 0 {
            return Ok(found);
        }
        let mut at = u64::from(self.read_u8(CAPABILITIES)? & !3);
        while at != 0 {
            if found.len() == MOST_CAPABILITIES {
                bail!("the capability list of {} has no end", self.name());
            }
            let id = self.read_u8(at)?;
            found.push(Capability { at, id });
            at = u64::from(self.read_u8(at + 1)? & !3);
        }
        Ok(found)
    }

    /// Reads a byte of the configuration space.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub(crate) fn read_u8(&self, at: u64) -> Result<u8> {
        Ok(u8::from_le_bytes(self.read(at)?))
    }

    /// Reads two bytes of the configuration space.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub(crate) fn read_u16(&self, at: u64) -> Result<u16> {
        Ok(u16::from_le_bytes(self.read(at)?))
    }

    /// Reads four bytes of the configuration space.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    pub(crate) fn read_u32(&self, at: u64) -> Result<u32> {
        Ok(u32::from_le_bytes(self.read(at)?))
    }

    fn read<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.config
            .read_exact_at(&mut bytes, at)
            .with_context(|| format!("reading the configuration space of {}", self.name()))?;
        Ok(bytes)
    }

    /// Maps a whole BAR.
    ///
    /// # Errors
    ///
    /// When there is no such BAR or it is not one of memory.
    pub(crate) fn map_bar(&self, bar: u8) -> Result<MmapRegion> {
        map_file(&self.directory.join(format!("resource{bar}")))
    }
}

fn map_file(path: &Path) -> Result<MmapRegion> {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))?;
    let size = usize::try_from(file.metadata()?.len())?;
    MmapRegion::from_file(FileOffset::new(file, 0), size)
        .with_context(|| format!("mapping {}", path.display()))
}
