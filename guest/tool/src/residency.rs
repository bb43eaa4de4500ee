//! `hmm residency`: where the memory of a process is.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use hmm::{page_size, Device, PageRange, PageState, Place};
use hmm_cli::{say, size};
use hmm_tool::places::at;
use rustix::termios::tcgetwinsize;

/// Characters in a bar.
const BAR: usize = 12;

/// The width of a line without the name of the VMA, which is last.
const BEFORE_THE_NAME: usize = 68;

/// What the letters of a bar mean.
const LEGEND: &str = "pages of 4 KiB; S system, D device, * both, ? elsewhere, . none";

/// A line of `/proc/PID/maps`.
#[derive(Debug, PartialEq, Eq)]
struct Vma {
    addresses: std::ops::Range<usize>,
    rights: String,
    name: String,
}

/// Counts of pages by place.
#[derive(Debug, Default, PartialEq, Eq)]
struct PageCounts {
    pages: usize,
    system: usize,
    device: usize,
    other: usize,
    mapped: usize,
    large: usize,
}

/// Prints a line for each VMA of the process that has pages.
pub(crate) fn show(path: &Path, pid: i32, json: bool) -> Result<()> {
    let device = Device::open(path)?;
    let maps = format!("/proc/{pid}/maps");
    let maps = fs::read_to_string(&maps).with_context(|| format!("reading {maps}"))?;
    let mut rows = Vec::new();
    for vma in maps.lines().filter_map(parse) {
        // Memory without access has no pages, and may be a reservation of terabytes.
        if vma.rights.starts_with("---") {
            continue;
        }
        let range = PageRange::around(vma.addresses.clone());
        let states = device.residency_of(pid, range)?;
        rows.push((vma, PageCounts::of(&states), bar(&states)));
    }
    if json {
        rows.iter()
            .for_each(|(vma, counts, _)| say!("{}", counts.json(vma)));
        return Ok(());
    }
    say!(
        "{:<12} {:>8} {:<4} {:>8} {:>8} {:>8}  {:<BAR$} what",
        "address",
        "size",
        "",
        "system",
        "device",
        "mapped",
        "where"
    );
    let room = terminal_width().map(|width| width.saturating_sub(BEFORE_THE_NAME));
    let mut total = PageCounts::default();
    for (vma, counts, bar) in &rows {
        total.add(counts);
        if counts.system + counts.device + counts.other > 0 {
            let line = format!(
                "{:012x} {:>8} {:<4} {counts}  {bar} {}",
                vma.addresses.start,
                size::write(vma.addresses.len() as u64),
                vma.rights,
                end_of(&vma.name, room),
            );
            say!("{}", line.trim_end());
        }
    }
    let bytes = (total.pages * page_size()) as u64;
    say!("{:<12} {:>8} {:<4} {total}", "all", size::write(bytes), "");
    say!("{LEGEND}");
    Ok(())
}

/// The width of the terminal that the output goes to, if it goes to one.
fn terminal_width() -> Option<usize> {
    let size = tcgetwinsize(std::io::stdout()).ok()?;
    Some(usize::from(size.ws_col)).filter(|columns| *columns > 0)
}

/// A name, or as much of its end as there is room for.
fn end_of(name: &str, room: Option<usize>) -> String {
    let length = name.chars().count();
    match room {
        Some(room) if length > room => {
            let left_out = length + 1 - room.max(1);
            format!("…{}", name.chars().skip(left_out).collect::<String>())
        }
        _ => name.to_owned(),
    }
}

impl fmt::Display for PageCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            system,
            device,
            mapped,
            ..
        } = self;
        write!(f, "{system:>8} {device:>8} {mapped:>8}")
    }
}

/// Parses `start-end rights offset device inode   name`.
fn parse(line: &str) -> Option<Vma> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let addresses = address(start)?..address(end)?;
    let rights = words.next()?.to_owned();
    let name = words.skip(3).collect::<Vec<_>>().join(" ");
    Some(Vma {
        addresses,
        rights,
        name,
    })
}

impl PageCounts {
    fn of(states: &[PageState]) -> Self {
        Self {
            pages: states.len(),
            system: at(Place::System, states),
            device: at(Place::Device, states),
            other: at(Place::Other, states),
            mapped: states.iter().filter(|state| state.is_mapped()).count(),
            large: states.iter().filter(|state| state.is_large()).count(),
        }
    }

    fn add(&mut self, other: &Self) {
        self.pages += other.pages;
        self.system += other.system;
        self.device += other.device;
        self.other += other.other;
        self.mapped += other.mapped;
        self.large += other.large;
    }

    fn json(&self, vma: &Vma) -> serde_json::Value {
        serde_json::json!({
            "start": vma.addresses.start,
            "end": vma.addresses.end,
            "rights": vma.rights,
            "name": vma.name,
            "pages": self.pages,
            "system": self.system,
            "device": self.device,
            "other": self.other,
            "mapped": self.mapped,
            "large": self.large,
        })
    }
}

/// A bar for the pages, each character for an equal part of them.
fn bar(states: &[PageState]) -> String {
    let part = |index: usize| {
        let from = index * states.len() / BAR;
        // A part that is smaller than a page shows the page that it lies in.
        let to = ((index + 1) * states.len() / BAR)
            .max(from + 1)
            .min(states.len());
        let has = |place| states[from..to].iter().any(|state| state.place() == place);
        match (has(Place::System), has(Place::Device)) {
            (true, true) => '*',
            (true, false) => 'S',
            (false, true) => 'D',
            (false, false) if has(Place::Other) => '?',
            (false, false) => '.',
        }
    };
    (0..BAR).map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use hmm::spec::uapi::page_state;

    #[test]
    fn a_line_of_maps_is_a_vma_whose_name_may_have_spaces() {
        let vma = parse("7f00a000-7f00c000 rw-p 00000000 00:01 42   /a file (deleted)").unwrap();
        assert_eq!(vma.addresses, 0x7f00_a000..0x7f00_c000);
        assert_eq!(
            (vma.rights.as_str(), vma.name.as_str()),
            ("rw-p", "/a file (deleted)")
        );
        assert_eq!(parse("1000-2000 r--p 0 00:00 0").unwrap().name, "");
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn a_long_name_loses_its_beginning_where_there_is_no_room() {
        assert_eq!(end_of("/usr/lib/libc.so.6", Some(13)), "…ib/libc.so.6");
        assert_eq!(end_of("[heap]", Some(6)), "[heap]");
        assert_eq!(end_of("/usr/lib/libc.so.6", None), "/usr/lib/libc.so.6");
        assert_eq!(end_of("[heap]", Some(0)), "…");
    }

    #[test]
    fn what_is_before_a_name_leaves_room_for_it_in_80_columns() {
        let counts = PageCounts {
            system: 99_999_999,
            device: 99_999_999,
            mapped: 99_999_999,
            ..PageCounts::default()
        };
        let bar = ".".repeat(BAR);
        let line = format!(
            "{:012x} {:>8} {:<4} {counts}  {bar} ",
            u64::MAX >> 16,
            "1048572K",
            "rw-p"
        );
        assert_eq!(line.len(), BEFORE_THE_NAME);
        assert!(LEGEND.len() < 80);
    }

    #[test]
    fn this_process_has_vmas() {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        assert_eq!(maps.lines().filter_map(parse).count(), maps.lines().count());
    }

    #[test]
    fn a_bar_has_the_same_length_for_any_number_of_pages() {
        let system = PageState::from_raw(page_state::SYSTEM);
        let device = PageState::from_raw(page_state::DEVICE);
        assert_eq!(bar(&[]), ".".repeat(BAR));
        assert_eq!(bar(&[device]), "D".repeat(BAR));
        assert_eq!(
            bar(&[system, device]),
            "S".repeat(BAR / 2) + &"D".repeat(BAR / 2)
        );
        assert_eq!(bar(&vec![system; 1000]), "S".repeat(BAR));
        let mixed: Vec<_> = [system, device].into_iter().cycle().take(1000).collect();
        assert_eq!(bar(&mixed), "*".repeat(BAR));
    }
}
