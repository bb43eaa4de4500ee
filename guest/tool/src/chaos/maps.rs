//! Which memory a process has, as `/proc/PID/maps` and `/proc/PID/pagemap` tell.
//!
//! It knows nothing of the device, nor what is done with the memory.

use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// A VMA of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Vma {
    pub(super) range: Range<usize>,
    pub(super) is_writable: bool,
    /// Private memory without a file: what can move to a device.
    pub(super) is_anonymous: bool,
}

/// The VMAs of a process that it can read and that are its own memory.
pub(super) fn read(pid: i32) -> io::Result<Vec<Vma>> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    Ok(text.lines().filter_map(vma).collect())
}

/// Reads a line such as `7f0a000-7f0b000 rw-p 00000000 00:00 0   [heap]`.
fn vma(line: &str) -> Option<Vma> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let rights = words.next()?.as_bytes();
    let inode = words.nth(2)?;
    let path = words.next().unwrap_or_default();
    // Memory of the kernel's, which it maps itself and no device can have; and that of drivers.
    if path.starts_with("[v") || path.starts_with("/dev/") && !path.starts_with("/dev/zero") {
        return None;
    }
    let address = |text| usize::from_str_radix(text, 16).ok();
    let is = |place: usize, letter| rights.get(place) == Some(&letter);
    is(0, b'r').then_some(())?;
    Some(Vma {
        range: address(start)?..address(end)?,
        is_writable: is(1, b'w'),
        is_anonymous: is(3, b'p') && inode == "0",
    })
}

/// Which pages of a range a process has: present, or swapped out, or on a device.
pub(super) fn populated(
    pagemap: &File,
    range: &Range<usize>,
    page: usize,
) -> io::Result<Vec<bool>> {
    const ENTRY: usize = size_of::<u64>();
    /// The page is swapped out, or in a device's memory; or it is present.
    const SOMEWHERE: u64 = 1 << 62 | 1 << 63;
    let mut entries = vec![0; range.len() / page * ENTRY];
    let offset = (range.start / page * ENTRY) as u64;
    pagemap.read_exact_at(&mut entries, offset)?;
    let entries = entries.chunks_exact(ENTRY);
    Ok(entries
        .map(|entry| {
            let entry = entry.try_into().map_or(0, u64::from_ne_bytes);
            entry & SOMEWHERE != 0
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_where_memory_is_and_what_it_is() {
        let heap = vma("55d0c000-55d2d000 rw-p 00000000 00:00 0          [heap]").unwrap();
        assert_eq!(heap.range, 0x55d0_c000..0x55d2_d000);
        assert!(heap.is_writable && heap.is_anonymous);
        let text = vma("00400000-00452000 r-xp 00000000 08:02 173521  /usr/bin/dbus daemon");
        let text = text.unwrap();
        assert!(!text.is_writable && !text.is_anonymous);
        let shared = vma("7f00000-7f01000 rw-s 00000000 00:01 1025  /dev/zero (deleted)").unwrap();
        assert!(shared.is_writable && !shared.is_anonymous);
    }

    #[test]
    fn memory_that_no_device_can_have_is_left_out() {
        assert_eq!(vma("7ffc1000-7ffc5000 r--p 00000000 00:00 0  [vvar]"), None);
        assert_eq!(vma("7f00000-7f01000 ---p 00000000 00:00 0"), None);
        assert_eq!(
            vma("7f00000-7f01000 rw-s 00000000 00:06 99  /dev/hmm0"),
            None
        );
        assert_eq!(vma(""), None);
        assert_eq!(vma("7f00000 rw-p 0 00:00 0"), None);
    }

    #[test]
    fn a_process_has_the_pages_that_it_has_touched() {
        let page = hmm::page_size();
        let own = vec![1_u8; 4 * page];
        let start = own.as_ptr().addr().next_multiple_of(page);
        let range = start..start + 2 * page;
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        assert_eq!(populated(&pagemap, &range, page).unwrap(), [true, true]);
        let pid = i32::try_from(std::process::id()).unwrap();
        let all = read(pid).unwrap();
        let holds = |vma: &&Vma| vma.range.start <= range.start && range.end <= vma.range.end;
        assert!(all.iter().find(holds).unwrap().is_anonymous);
    }
}
