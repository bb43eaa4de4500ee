//! What the kernel reports of memory, and what it can be told to do: procfs, sysfs, cgroups.
//!
//! A facility that this kernel lacks is [`CannotRun`](crate::row::CannotRun), with its
//! name. It knows nothing of the device.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure, Context, Result};
use hmm_cli::remark;

use crate::area::{Area, PAGE};
use crate::row::cannot_run;

/// Whether the kernel has a function of this name.
pub(crate) fn has_function(name: &str) -> Result<bool> {
    const SYMBOLS: &str = "/proc/kallsyms";
    let symbols = fs::read_to_string(SYMBOLS).with_context(|| format!("reading {SYMBOLS}"))?;
    let mut names = symbols.lines().filter_map(|line| line.split(' ').nth(2));
    Ok(names.any(|other| other == name))
}

/// A page table entry, as `/proc/PID/pagemap` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry(u64);

impl Entry {
    /// A page in memory that the CPU can use.
    pub(crate) fn is_present(self) -> bool {
        self.0 & 1 << 63 != 0
    }

    /// An entry without such a page: swapped out, or in device memory.
    pub(crate) fn is_swap(self) -> bool {
        self.0 & 1 << 62 != 0
    }

    /// Written since the bits were cleared.
    pub(crate) fn is_soft_dirty(self) -> bool {
        self.0 & 1 << 55 != 0
    }

    /// The page's frame number if it is present. An entry of device memory is written as a swap
    /// entry: its offset is the frame number.
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
    entries_of(area, area.all())
}

/// The same for some of its pages.
pub(crate) fn entries_of(area: &Area, pages: Range<usize>) -> Result<Vec<Entry>> {
    let file = File::open("/proc/self/pagemap").context("opening the page map")?;
    let mut bytes = vec![0; pages.len() * 8];
    let offset = (area.address(pages.start) / PAGE * 8) as u64;
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

/// A line of `/proc/self/smaps` about the mapping that begins at an area's first page.
pub(crate) fn smaps(area: &Area, name: &str) -> Result<String> {
    let text = fs::read_to_string("/proc/self/smaps").context("reading smaps")?;
    let begin = format!("{:x}-", area.address(0));
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&begin));
    let value = lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    value
        .map(|value| value.trim().to_owned())
        .with_context(|| format!("smaps has no {name} of the area"))
}

/// The mappings of this process that have a flag, in the abbreviation of smaps: their first address
/// and name.
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

/// The file in which the driver is told to be late.
const LATE: &str = "/sys/kernel/debug/virtio_hmm/late";

/// Rules by which the driver is late until this is dropped.
#[derive(Debug)]
pub(crate) struct Late(());

impl Late {
    /// Sets rules; `None` if other rules are in force already, which stay.
    pub(crate) fn by(rules: &str) -> Result<Option<Self>> {
        if read(LATE)?.lines().any(|line| line.starts_with("rule ")) {
            return Ok(None);
        }
        write(LATE, rules)?;
        Ok(Some(Self(())))
    }

    /// Waits until the driver has reached this point since the rules were set.
    pub(crate) fn reached(&self, point: &str) -> Result<()> {
        let prefix = format!("point {point} ");
        until(&format!("the driver reaches {point}"), || {
            let text = read(LATE)?;
            let mut counts = text.lines().filter_map(|line| line.strip_prefix(&*prefix));
            Ok(counts.any(|count| count != "0"))
        })
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        if let Err(error) = write(LATE, "\n") {
            remark!("the driver stays late: {error:#}");
        }
    }
}

/// The kernel log.
#[derive(Debug)]
pub(crate) struct Log(File);

impl Log {
    /// Begins to read at its end.
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

    /// Whether the log contains this text since the last question.
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

/// A setting of the kernel that is restored at the end.
#[derive(Debug)]
pub(crate) struct Setting {
    /// Open all the time: when memory is refused, a file may be written but not opened.
    file: File,
    before: String,
}

impl Setting {
    /// Changes it.
    pub(crate) fn change(path: impl Into<PathBuf>, value: &str) -> Result<Self> {
        let path = path.into();
        let text = read(&path)?;
        // A choice is shown as `one [two] three`; the chosen one is restored.
        let chosen = text.split(['[', ']']).nth(1).unwrap_or(text.trim());
        let opened = File::options().write(true).open(&path);
        let setting = Self {
            before: chosen.to_owned(),
            file: opened.with_context(|| format!("opening {}", path.display()))?,
        };
        let written = setting.set(value);
        written.with_context(|| format!("writing {}", path.display()))?;
        Ok(setting)
    }

    fn set(&self, value: &str) -> io::Result<()> {
        // Some of these files have positions and are written at the first one alone; others have
        // none.
        let mut file = &self.file;
        let _ = file.rewind();
        file.write_all(value.as_bytes())
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        // Memory may still be refused until this write restores the setting, so the write itself
        // may fail.
        let put_back = || self.set(&self.before).is_ok();
        let _ = (0..1000).any(|_| put_back());
    }
}

/// How many seconds a row may take, for the row itself.
pub(crate) const LIMIT: &str = "HMM_CONTRACT_LIMIT";

/// How long a row waits for an event that is certain to come: nearly as long as the row may take,
/// so that the row itself reports what is missing. It follows the machine's pace.
pub(crate) fn patience() -> Duration {
    let limit = std::env::var(LIMIT).ok().and_then(|text| text.parse().ok());
    Duration::from_secs(limit.unwrap_or(60)) * 3 / 4
}

/// Waits until the kernel has done something that it does in its own time and signals by no event.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let (begun, limit) = (Instant::now(), patience());
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
        // Its processes have ended; this one, if it joined, leaves.
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

/// Swap space that is in use as long as this exists.
#[derive(Debug)]
pub(crate) struct Swap {
    disk: RamDisk,
}

impl Swap {
    /// Makes swap space and turns it on.
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

/// Makes the kernel drop its clean caches of files.
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
