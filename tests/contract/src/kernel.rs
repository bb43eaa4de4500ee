//! What the kernel tells of memory, and what may be asked of it: procfs, sysfs, cgroups.
//!
//! A facility that this kernel lacks is [`CannotRun`](crate::row::CannotRun), with its
//! name. It knows nothing of the device.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};

use crate::area::{Area, PAGE};
use crate::row::cannot_run;

/// What a page table entry is, as `/proc/PID/pagemap` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry(u64);

impl Entry {
    /// A page in memory that the CPU can use.
    pub(crate) fn is_present(self) -> bool {
        self.0 & 1 << 63 != 0
    }

    /// Something that is not such a page: swapped out, or in device memory.
    pub(crate) fn is_swap(self) -> bool {
        self.0 & 1 << 62 != 0
    }

    /// The page's frame number if it is present. With an entry of device memory, which
    /// is written as a swap entry, the offset is the frame number.
    pub(crate) fn frame(self) -> u64 {
        let low = self.0 & ((1 << 55) - 1);
        if self.is_swap() {
            low >> 5
        } else {
            low
        }
    }
}

/// The page table entries of an area of this process.
pub(crate) fn entries(area: &Area) -> Result<Vec<Entry>> {
    let file = File::open("/proc/self/pagemap").context("opening the page map")?;
    let mut bytes = vec![0; area.pages() * 8];
    let offset = (area.address(0) / PAGE * 8) as u64;
    file.read_exact_at(&mut bytes, offset)
        .context("reading the page map")?;
    let words = bytes.chunks_exact(8).map(|word| {
        let mut array = [0; 8];
        array.copy_from_slice(word);
        Entry(u64::from_ne_bytes(array))
    });
    Ok(words.collect())
}

/// A number of kibibytes in a file of lines `Name: 12 kB`, in bytes.
fn kibibytes(path: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next());
    match value {
        Some(value) => Ok(value.parse::<u64>()? * 1024),
        None => bail!("{path} has no {name}"),
    }
}

/// A number of `/proc/self/status`, in bytes.
pub(crate) fn status(name: &str) -> Result<u64> {
    kibibytes("/proc/self/status", name)
}

/// A number of `/proc/meminfo`, in bytes.
pub(crate) fn meminfo(name: &str) -> Result<u64> {
    kibibytes("/proc/meminfo", name)
}

/// What `/proc/self/smaps` says of the mapping that begins at an area's first page.
pub(crate) fn smaps(area: &Area, name: &str) -> Result<String> {
    let text = fs::read_to_string("/proc/self/smaps").context("reading smaps")?;
    let begin = format!("{:x}-", area.address(0));
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&begin));
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value
        .map(|value| value.trim().to_owned())
        .with_context(|| format!("smaps has no {name} of the area"))
}

/// The mappings of this process that have a flag, as smaps abbreviates it: their
/// first address and name.
pub(crate) fn mappings_with(flag: &str) -> Result<Vec<(usize, String)>> {
    let text = fs::read_to_string("/proc/self/smaps").context("reading smaps")?;
    let mut found = Vec::new();
    let mut current = None;
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            if flags.split_whitespace().any(|other| other == flag) {
                found.extend(current.take());
            }
            continue;
        }
        let mut words = line.split_whitespace();
        let range = words.next().and_then(|range| range.split_once('-'));
        if let Some((start, _)) = range {
            if let Ok(start) = usize::from_str_radix(start, 16) {
                current = Some((start, words.last().unwrap_or("").to_owned()));
            }
        }
    }
    Ok(found)
}

/// Reads one of the kernel's files; without it a row cannot run.
pub(crate) fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    fs::read_to_string(path)
        .map_err(|error| cannot_run(format!("{} cannot be read: {error}", path.display())))
}

/// Writes one of the kernel's files; without it a row cannot run.
pub(crate) fn write(path: impl AsRef<Path>, value: &str) -> Result<()> {
    let path = path.as_ref();
    fs::write(path, value)
        .map_err(|error| cannot_run(format!("{} does not take {value}: {error}", path.display())))
}

/// What the kernel says.
#[derive(Debug)]
pub(crate) struct Log(File);

impl Log {
    /// From now on.
    pub(crate) fn from_now() -> Result<Self> {
        const PATH: &str = "/dev/kmsg";
        let mut file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(PATH)
            .map_err(|error| cannot_run(format!("{PATH} cannot be opened: {error}")))?;
        file.seek(SeekFrom::End(0)).context("its end")?;
        Ok(Self(file))
    }

    /// Whether it has said this since it was last asked.
    pub(crate) fn says(&mut self, what: &str) -> Result<bool> {
        let mut record = [0; 8192];
        let mut found = false;
        loop {
            match self.0.read(&mut record) {
                Ok(count) => {
                    found |= String::from_utf8_lossy(&record[..count]).contains(what);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(found),
                // Older records have been overwritten meanwhile.
                Err(error) if error.kind() == ErrorKind::BrokenPipe => {}
                Err(error) => return Err(error).context("reading the kernel's log"),
            }
        }
    }
}

/// A setting of the kernel that is put back at the end.
#[derive(Debug)]
pub(crate) struct Setting {
    path: PathBuf,
    before: String,
}

impl Setting {
    /// Changes it.
    pub(crate) fn change(path: impl Into<PathBuf>, value: &str) -> Result<Self> {
        let path = path.into();
        let text = read(&path)?;
        // A choice is shown as `one [two] three`, of which the chosen one is put back.
        let chosen = text.split(['[', ']']).nth(1).unwrap_or(text.trim());
        let setting = Self {
            before: chosen.to_owned(),
            path,
        };
        write(&setting.path, value)?;
        Ok(setting)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        // What is put back may be that memory is refused, also for this.
        let put_back = || fs::write(&self.path, &self.before).is_ok();
        let _ = (0..1000).any(|_| put_back());
    }
}

/// Waits until the kernel has done what it does in its own time, and for which there is
/// no event.
pub(crate) fn until(
    what: &str,
    limit: Duration,
    mut is_so: impl FnMut() -> Result<bool>,
) -> Result<()> {
    let begun = Instant::now();
    while !is_so()? {
        ensure!(begun.elapsed() < limit, "{what}: not within {limit:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A control group of this row's own, with the memory controller.
#[derive(Debug)]
pub(crate) struct Group {
    path: PathBuf,
}

const GROUPS: &str = "/sys/fs/cgroup";

impl Group {
    /// Makes one.
    pub(crate) fn new() -> Result<Self> {
        let controllers = read(format!("{GROUPS}/cgroup.controllers"))?;
        if !controllers.split_whitespace().any(|name| name == "memory") {
            return Err(cannot_run("the kernel has no memory controller"));
        }
        write(format!("{GROUPS}/cgroup.subtree_control"), "+memory")?;
        let path = PathBuf::from(format!("{GROUPS}/contract-{}", process::id()));
        fs::create_dir(&path).context("making a control group")?;
        Ok(Self { path })
    }

    /// Moves this process into it.
    pub(crate) fn join(&self) -> Result<()> {
        self.set("cgroup.procs", &process::id().to_string())
    }

    /// Writes one of its files.
    pub(crate) fn set(&self, name: &str, value: &str) -> Result<()> {
        write(self.path.join(name), value)
    }

    /// Reads one of its files that holds a number.
    pub(crate) fn number(&self, name: &str) -> Result<u64> {
        Ok(read(self.path.join(name))?.trim().parse()?)
    }

    /// Reads a counter of one of its files that has lines `name 12`.
    pub(crate) fn counter(&self, file: &str, name: &str) -> Result<u64> {
        let text = read(self.path.join(file))?;
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(value
            .with_context(|| format!("{file} has no {name}"))?
            .parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its processes have ended; this one, if it joined, goes back.
        let _ = fs::write(format!("{GROUPS}/cgroup.procs"), process::id().to_string());
        let _ = fs::remove_dir(&self.path);
    }
}

/// A compressed block device in memory, with nothing on it.
#[derive(Debug)]
pub(crate) struct RamDisk {
    number: u32,
}

impl RamDisk {
    /// Makes one.
    pub(crate) fn new(bytes: u64) -> Result<Self> {
        let mut text = String::new();
        File::open("/sys/class/zram-control/hot_add")
            .and_then(|mut file| file.read_to_string(&mut text))
            .map_err(|error| cannot_run(format!("the kernel offers no zram devices: {error}")))?;
        let disk = Self {
            number: text.trim().parse()?,
        };
        fs::write(disk.file("disksize"), bytes.to_string()).context("giving it a size")?;
        Ok(disk)
    }

    fn file(&self, name: &str) -> String {
        format!("/sys/block/zram{}/{name}", self.number)
    }

    /// Its node.
    pub(crate) fn node(&self) -> String {
        format!("/dev/zram{}", self.number)
    }
}

impl Drop for RamDisk {
    fn drop(&mut self) {
        let _ = fs::write(self.file("reset"), "1");
        let _ = fs::write(
            "/sys/class/zram-control/hot_remove",
            self.number.to_string(),
        );
    }
}

/// Swap space, as long as this exists.
#[derive(Debug)]
pub(crate) struct Swap {
    disk: RamDisk,
}

impl Swap {
    /// Makes and uses some.
    pub(crate) fn new(bytes: u64) -> Result<Self> {
        let disk = RamDisk::new(bytes)?;
        run("mkswap", &[&disk.node()])?;
        run("swapon", &[&disk.node()])?;
        Ok(Self { disk })
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        let _ = run("swapoff", &[&self.disk.node()]);
    }
}

/// A file system on a block device, mounted as long as this exists.
#[derive(Debug)]
pub(crate) struct Disk {
    path: PathBuf,
    _disk: RamDisk,
}

impl Disk {
    /// Makes one.
    pub(crate) fn new(bytes: u64) -> Result<Self> {
        let kinds = read("/proc/filesystems")?;
        let Some(kind) = ["ext2", "ext4"]
            .into_iter()
            .find(|kind| kinds.split_whitespace().any(|other| other == *kind))
        else {
            return Err(cannot_run("the kernel has neither ext2 nor ext4"));
        };
        let disk = RamDisk::new(bytes)?;
        // The disk has sectors of 4 KiB, and blocks cannot be smaller.
        run("mke2fs", &["-b", "4096", &disk.node()])?;
        let path = PathBuf::from(format!("/tmp/contract-{}", process::id()));
        fs::create_dir(&path).context("a place to mount")?;
        run(
            "mount",
            &["-t", kind, &disk.node(), &path.display().to_string()],
        )?;
        Ok(Self { path, _disk: disk })
    }

    /// A path on it.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = run("umount", &[&self.path.display().to_string()]);
        let _ = fs::remove_dir(&self.path);
    }
}

/// Runs a program of the guest.
pub(crate) fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = process::Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("starting {program}"))?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

/// Has the kernel forget what it remembers of files and does not need.
pub(crate) fn drop_caches() -> Result<()> {
    write("/proc/sys/vm/drop_caches", "3")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_there_once_it_was_touched() {
        let area = Area::small(2).unwrap();
        area.write(1..2, 5);
        let entries = entries(&area).unwrap();
        assert!(!entries[0].is_present() && !entries[0].is_swap());
        assert!(entries[1].is_present());
        assert!(status("VmRSS").unwrap() > 0);
        assert_eq!(smaps(&area, "Rss").unwrap(), "4 kB");
    }
}
