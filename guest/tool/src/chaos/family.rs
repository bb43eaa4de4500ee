//! The processes that descend from this one, as `/proc` tells.
//!
//! Orphans among them become children of this process, which is their subreaper, so that no
//! descendant is lost that lives for long enough to be seen. It knows nothing of their memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

/// What `/proc/PID/stat` tells of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stat {
    parent: i32,
    state: u8,
    program: Program,
}

/// A program that a process executes: an exec changes it, unless addresses are not random.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Program {
    code: u64,
    stack: u64,
}

impl Program {
    /// The program that a living process executes.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let stat = Stat::of(pid).filter(Stat::is_alive)?;
        Some(stat.program)
    }
}

impl Stat {
    fn of(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The second field is a name, which may hold anything.
        let (_, text) = text.rsplit_once(')')?;
        let mut words = text.split_ascii_whitespace();
        let state = *words.next()?.as_bytes().first()?;
        let parent = words.next()?.parse().ok()?;
        // Fields 26 and 28; the parent is the fourth one.
        let code = words.nth(21)?.parse().ok()?;
        let stack = words.nth(1)?.parse().ok()?;
        Some(Self {
            parent,
            state,
            program: Program { code, stack },
        })
    }

    /// Whether it has a program at all: it is neither dead nor about to be.
    fn is_alive(&self) -> bool {
        !matches!(self.state, b'Z' | b'X')
    }
}

/// The descendants of this process.
#[derive(Debug)]
pub(super) struct Family {
    me: i32,
    members: BTreeMap<i32, Program>,
    strangers: BTreeSet<i32>,
}

impl Family {
    /// None yet, of the process with this number.
    pub(super) fn new(me: i32) -> Self {
        Self {
            me,
            members: BTreeMap::new(),
            strangers: BTreeSet::new(),
        }
    }

    /// The living descendants at the last look.
    pub(super) fn members(&self) -> &BTreeMap<i32, Program> {
        &self.members
    }

    /// Looks for new descendants, and forgets those that have ended.
    pub(super) fn look(&mut self) {
        let Ok(entries) = fs::read_dir("/proc") else {
            return;
        };
        let names = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        self.update(&names.collect(), Stat::of);
    }

    fn update(&mut self, all: &BTreeSet<i32>, stat: impl Fn(i32) -> Option<Stat>) {
        self.strangers.retain(|pid| all.contains(pid));
        let known = |pid: &&i32| **pid != self.me && !self.strangers.contains(pid);
        let mut stats: BTreeMap<i32, Stat> = all
            .iter()
            .filter(known)
            .filter_map(|&pid| Some((pid, stat(pid)?)))
            .collect();
        let mut members: BTreeSet<i32> = (self.members.keys().copied())
            .filter(|pid| stats.contains_key(pid))
            .collect();
        // A parent may have a higher number than its child, so that this may take several rounds.
        loop {
            let more: Vec<i32> = stats
                .iter()
                .filter(|(pid, stat)| {
                    !members.contains(pid)
                        && (stat.parent == self.me || members.contains(&stat.parent))
                })
                .map(|(&pid, _)| pid)
                .collect();
            if more.is_empty() {
                break;
            }
            members.extend(more);
        }
        let is_known = |pid: i32, strangers: &BTreeSet<i32>| pid == 0 || strangers.contains(&pid);
        // The parent of another one may be younger than the list, and a descendant.
        loop {
            let strangers: Vec<i32> = stats
                .iter()
                .filter(|(pid, stat)| {
                    !members.contains(pid)
                        && !self.strangers.contains(pid)
                        && is_known(stat.parent, &self.strangers)
                })
                .map(|(&pid, _)| pid)
                .collect();
            if strangers.is_empty() {
                break;
            }
            self.strangers.extend(strangers);
        }
        stats.retain(|pid, stat| members.contains(pid) && stat.is_alive());
        self.members = stats
            .into_iter()
            .map(|(pid, stat)| (pid, stat.program))
            .collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(parent: i32) -> Stat {
        Stat {
            parent,
            state: b'S',
            program: Program { code: 1, stack: 2 },
        }
    }

    fn update(family: &mut Family, processes: &[(i32, i32)]) -> Vec<i32> {
        let all: BTreeMap<i32, Stat> = processes
            .iter()
            .map(|&(pid, parent)| (pid, stat(parent)))
            .collect();
        family.update(&all.keys().copied().collect(), |pid| all.get(&pid).copied());
        family.members().keys().copied().collect()
    }

    #[test]
    fn a_line_is_read_whatever_the_name_of_the_program() {
        let rest = "S 7 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 99 4096 10 18446744073709551615 \
                    4194304 4200000 140720000 0 0";
        let read = Stat::parse(&format!("42 (a) S 1 (b) {rest}")).unwrap();
        let program = Program {
            code: 4_194_304,
            stack: 140_720_000,
        };
        assert_eq!((read.parent, read.state, read.program), (7, b'S', program));
        assert!(Stat::parse("42 (a) S").is_none());
        assert!(Stat::of(i32::try_from(std::process::id()).unwrap()).is_some());
    }

    #[test]
    fn descendants_are_found_whatever_the_order_of_their_numbers() {
        let mut family = Family::new(10);
        let processes = [(1, 0), (2, 0), (3, 2), (10, 1), (5, 20), (20, 10), (30, 5)];
        assert_eq!(update(&mut family, &processes), [5, 20, 30]);
    }

    #[test]
    fn an_orphan_stays_a_member_and_the_dead_are_forgotten() {
        let mut family = Family::new(10);
        update(&mut family, &[(1, 0), (10, 1), (20, 10), (30, 20)]);
        assert_eq!(update(&mut family, &[(1, 0), (10, 1), (30, 10)]), [30]);
        assert_eq!(update(&mut family, &[(1, 0), (10, 1)]), [0; 0]);
    }

    #[test]
    fn a_process_whose_parent_is_not_known_yet_is_looked_at_again() {
        let mut family = Family::new(10);
        // Its parent began after the list of processes was made.
        assert_eq!(update(&mut family, &[(1, 0), (10, 1), (31, 30)]), [0; 0]);
        let later = [(1, 0), (10, 1), (30, 10), (31, 30)];
        assert_eq!(update(&mut family, &later), [30, 31]);
    }

    #[test]
    fn a_dead_process_that_was_not_waited_for_is_no_member() {
        let mut family = Family::new(10);
        let mut dead = stat(10);
        dead.state = b'Z';
        family.update(&BTreeSet::from([20]), |_| Some(dead));
        assert!(family.members().is_empty());
    }
}
