//! `hmm residency`: where the memory of a process is.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use hmm::{Device, PageRange, PageState, Place};

/// Characters in a bar.
const BAR: usize = 32;

/// A line of `/proc/PID/maps`.
#[derive(Debug, PartialEq, Eq)]
struct Area {
    addresses: std::ops::Range<usize>,
    rights: String,
    name: String,
}

/// How many pages are where.
#[derive(Debug, Default, PartialEq, Eq)]
struct Census {
    pages: usize,
    system: usize,
    device: usize,
    other: usize,
    mapped: usize,
    large: usize,
}

/// Shows a line for each area of the process's memory that holds pages.
pub(crate) fn show(path: &Path, pid: i32, json: bool) -> Result<()> {
    let device = Device::open(path)?;
    let maps = format!("/proc/{pid}/maps");
    let maps = fs::read_to_string(&maps).with_context(|| format!("reading {maps}"))?;
    let mut rows = Vec::new();
    for area in maps.lines().filter_map(parse) {
        // What nobody may touch holds nothing, and may be terabytes of reservation.
        if area.rights.starts_with("---") {
            continue;
        }
        let range = PageRange::around(area.addresses.clone());
        let states = device.residency_of(pid, range)?;
        rows.push((area, Census::of(&states), bar(&states)));
    }
    if json {
        rows.iter()
            .for_each(|(area, census, _)| println!("{}", census.json(area)));
        return Ok(());
    }
    println!(
        "{:<29} {:<4} {:>8} {:>8} {:>8} {:>8}  {:<BAR$}  what",
        "addresses", "", "pages", "system", "device", "mapped", "S system, D device, * both"
    );
    let mut total = Census::default();
    for (area, census, bar) in &rows {
        total.add(census);
        if census.system + census.device + census.other > 0 {
            println!(
                "{:<29} {:<4} {census}  {bar}  {}",
                format!("{:x}-{:x}", area.addresses.start, area.addresses.end),
                area.rights,
                area.name,
            );
        }
    }
    println!("{:<29} {:<4} {total}", "all", "");
    Ok(())
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            pages,
            system,
            device,
            mapped,
            ..
        } = self;
        write!(f, "{pages:>8} {system:>8} {device:>8} {mapped:>8}")
    }
}

/// Parses `start-end rights offset device inode   name`.
fn parse(line: &str) -> Option<Area> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    let addresses = address(start)?..address(end)?;
    let rights = words.next()?.to_owned();
    let name = words.skip(3).collect::<Vec<_>>().join(" ");
    Some(Area {
        addresses,
        rights,
        name,
    })
}

impl Census {
    fn of(states: &[PageState]) -> Self {
        let at = |place| states.iter().filter(|state| state.place() == place).count();
        Self {
            pages: states.len(),
            system: at(Place::System),
            device: at(Place::Device),
            other: at(Place::Other),
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

    fn json(&self, area: &Area) -> serde_json::Value {
        serde_json::json!({
            "start": area.addresses.start,
            "end": area.addresses.end,
            "rights": area.rights,
            "name": area.name,
            "pages": self.pages,
            "system": self.system,
            "device": self.device,
            "other": self.other,
            "mapped": self.mapped,
            "large": self.large,
        })
    }
}

/// A picture of the pages, each character for an equal part of them.
fn bar(states: &[PageState]) -> String {
    let part = |index: usize| {
        let from = index * states.len() / BAR;
        // A part of less than a page shows the page that it is in.
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
    fn a_line_of_maps_is_an_area_whose_name_may_have_spaces() {
        let area = parse("7f00a000-7f00c000 rw-p 00000000 00:01 42   /a file (deleted)").unwrap();
        assert_eq!(area.addresses, 0x7f00_a000..0x7f00_c000);
        assert_eq!(
            (area.rights.as_str(), area.name.as_str()),
            ("rw-p", "/a file (deleted)")
        );
        assert_eq!(parse("1000-2000 r--p 0 00:00 0").unwrap().name, "");
        assert_eq!(parse("nonsense"), None);
    }

    #[test]
    fn this_process_has_areas() {
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
