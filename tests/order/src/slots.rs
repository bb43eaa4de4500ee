//! A ring with few slots: callers reserve slots, post requests, notify the device, and sleep.
//!
//! The callers must not all sleep while one of them has something to do.

use crate::search::Model;

/// The driver's rules.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// A caller that needs two slots sleeps with none of them, or is the only caller that sleeps
    /// with one.
    pub both_or_none: bool,
    /// Before a caller sleeps for a slot, it notifies the device of all that has been posted.
    pub tells_before_sleeping: bool,
    /// A caller that posts while another one sleeps for a slot notifies the device at once.
    pub tells_who_sleeps: bool,
}

impl Rules {
    /// All rules.
    pub const ALL: Self = Self {
        both_or_none: true,
        tells_before_sleeping: true,
        tells_who_sleeps: true,
    };
}

/// What a caller does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Answers a fault: two slots, two requests, and a notification.
    Fault,
    /// Maps regions ahead: one slot and one request for each of this many, without a notification.
    /// Then it waits for an event that never comes.
    Ahead(u8),
    /// Unmaps: one slot, one request, a notification, and a wait for the answer.
    Unmap,
}

/// The progress of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    /// It needs slots.
    Begins,
    /// It has none and sleeps until as many as it needs are free.
    Sleeps,
    /// It has one of two and sleeps for the other one.
    SleepsWithOne,
    /// It has all that it needs.
    Reserved,
    /// It waits until the device has carried out this many requests.
    Waits(u8),
    Done,
    /// It has done what it can, without a notification.
    Stuck,
}

/// The ring and its callers.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    free: u8,
    posted: u8,
    told: u8,
    carried_out: u8,
    /// The only caller that may sleep with one slot of two.
    gathers: Option<usize>,
    callers: Vec<(Kind, At)>,
}

/// A ring with this many slots, and these callers.
#[derive(Clone, Debug)]
pub struct Ring {
    /// The driver's rules.
    pub rules: Rules,
    /// The number of slots.
    pub slots: u8,
    /// The callers.
    pub callers: Vec<Kind>,
}

impl Ring {
    fn post(&self, state: &mut State) {
        state.posted += 1;
        let sleeps = |at: &At| matches!(at, At::Sleeps | At::SleepsWithOne);
        if self.rules.tells_who_sleeps && state.callers.iter().any(|(_, at)| sleeps(at)) {
            state.told = state.posted;
        }
    }

    fn sleep(&self, state: &mut State, caller: usize, at: At) {
        if self.rules.tells_before_sleeping {
            state.told = state.posted;
        }
        state.callers[caller].1 = at;
    }

    /// The next step of a caller; `None` if it sleeps, waits, or is done.
    fn step(&self, state: &State, caller: usize) -> Option<(&'static str, State)> {
        let (kind, at) = state.callers[caller];
        let needs = if kind == Kind::Fault { 2 } else { 1 };
        let may_gather = state.gathers.is_none_or(|gathers| gathers == caller);
        let mut state = state.clone();
        let what = match at {
            At::Begins if state.free >= needs => {
                state.free -= needs;
                state.callers[caller].1 = At::Reserved;
                "reserves"
            }
            At::Begins if needs == 2 && !self.rules.both_or_none && state.free == 1 => {
                state.free = 0;
                self.sleep(&mut state, caller, At::SleepsWithOne);
                "sleeps with one slot"
            }
            At::Begins => {
                self.sleep(&mut state, caller, At::Sleeps);
                "sleeps"
            }
            At::Sleeps if needs == 1 && state.free >= 1 => {
                state.free -= 1;
                state.callers[caller].1 = At::Reserved;
                "is given a slot"
            }
            At::Sleeps if needs == 2 && state.free >= 1 => {
                if self.rules.both_or_none {
                    if !may_gather {
                        return None;
                    }
                    state.gathers = Some(caller);
                }
                state.free -= 1;
                self.sleep(&mut state, caller, At::SleepsWithOne);
                "is given one of two slots"
            }
            At::SleepsWithOne if state.free >= 1 => {
                state.free -= 1;
                state.gathers = state.gathers.filter(|gathers| *gathers != caller);
                state.callers[caller].1 = At::Reserved;
                "is given the other slot"
            }
            At::Reserved => {
                self.post(&mut state);
                match kind {
                    Kind::Fault => {
                        self.post(&mut state);
                        state.told = state.posted;
                        state.callers[caller].1 = At::Done;
                    }
                    Kind::Unmap => {
                        state.told = state.posted;
                        state.callers[caller].1 = At::Waits(state.posted);
                    }
                    Kind::Ahead(left) => {
                        state.callers[caller] = match left {
                            0 | 1 => (Kind::Ahead(0), At::Stuck),
                            left => (Kind::Ahead(left - 1), At::Begins),
                        };
                    }
                }
                "posts"
            }
            At::Waits(number) if state.carried_out >= number => {
                state.callers[caller].1 = At::Done;
                "is answered"
            }
            _ => return None,
        };
        Some((what, state))
    }
}

impl Model for Ring {
    type State = State;

    fn start(&self) -> State {
        State {
            free: self.slots,
            posted: 0,
            told: 0,
            carried_out: 0,
            gathers: None,
            callers: self
                .callers
                .iter()
                .map(|kind| (*kind, At::Begins))
                .collect(),
        }
    }

    fn next(&self, state: &State) -> Vec<(String, State)> {
        let mut next = Vec::new();
        if state.carried_out < state.told {
            let mut state = state.clone();
            state.carried_out += 1;
            state.free += 1;
            next.push(("the device carries a request out".to_owned(), state));
        }
        for caller in 0..state.callers.len() {
            if let Some((what, after)) = self.step(state, caller) {
                let kind = state.callers[caller].0;
                next.push((format!("{caller} ({kind:?}) {what}"), after));
            }
        }
        next
    }

    fn wrong(&self, state: &State, is_last: bool) -> Option<String> {
        let ends = |at: &At| matches!(at, At::Done | At::Stuck);
        (is_last && !state.callers.iter().all(|(_, at)| ends(at)))
            .then(|| format!("everybody sleeps: {state:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::{search, Found};

    fn assert_harmless(slots: u8, callers: &[Kind]) {
        let callers = callers.to_vec();
        let rules = Rules::ALL;
        match search(&Ring {
            rules,
            slots,
            callers,
        }) {
            Found::Nothing(states) => println!("{states} states"),
            Found::Wrong(wrong, steps) => panic!("{wrong}\n{}", steps.join("\n")),
        }
    }

    fn assert_found(rules: Rules, slots: u8, callers: &[Kind]) {
        let callers = callers.to_vec();
        match search(&Ring {
            rules,
            slots,
            callers,
        }) {
            Found::Nothing(states) => panic!("nothing in {states} states"),
            Found::Wrong(wrong, steps) => println!("{wrong}\n{}", steps.join("\n")),
        }
    }

    #[test]
    fn with_all_rules_no_thread_sleeps_for_ever() {
        use Kind::{Ahead, Fault, Unmap};
        for slots in 2..=4 {
            assert_harmless(slots, &[Fault; 4]);
            assert_harmless(slots, &[Fault, Fault, Unmap, Unmap]);
            assert_harmless(slots, &[Ahead(5), Fault, Unmap]);
            assert_harmless(slots, &[Ahead(3), Ahead(3), Fault, Unmap]);
        }
    }

    #[test]
    fn a_sleeper_with_one_of_two_slots_may_sleep_for_ever() {
        let rules = Rules {
            both_or_none: false,
            ..Rules::ALL
        };
        assert_found(rules, 2, &[Kind::Fault; 3]);
        assert_found(rules, 3, &[Kind::Fault; 4]);
    }

    #[test]
    fn a_sleeper_for_a_slot_of_which_the_device_was_not_notified_sleeps_for_ever() {
        let rules = Rules {
            tells_before_sleeping: false,
            ..Rules::ALL
        };
        assert_found(rules, 3, &[Kind::Ahead(4)]);
    }

    #[test]
    fn a_sleeper_may_wait_for_what_is_posted_later() {
        let rules = Rules {
            tells_who_sleeps: false,
            ..Rules::ALL
        };
        assert_found(rules, 1, &[Kind::Ahead(1), Kind::Unmap]);
        assert_found(rules, 2, &[Kind::Ahead(2), Kind::Fault]);
    }
}
