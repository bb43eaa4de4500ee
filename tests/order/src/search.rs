//! A search through all reachable states, the nearest ones first.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Something that goes from state to state.
pub trait Model {
    /// A state.
    type State: Clone + Eq + Hash;

    /// The first state.
    fn start(&self) -> Self::State;

    /// All possible next steps, each with its name.
    fn next(&self, state: &Self::State) -> Vec<(String, Self::State)>;

    /// The fault of a state, if it has one. `is_last` says that it has no next step.
    fn wrong(&self, state: &Self::State, is_last: bool) -> Option<String>;
}

/// The result of a search.
#[derive(Debug)]
pub enum Found {
    /// No state has a fault; the number of states.
    Nothing(usize),
    /// The fault, and the fewest steps that lead to it.
    Wrong(String, Vec<String>),
}

/// Searches all of a model.
pub fn search<M: Model>(model: &M) -> Found {
    let start = model.start();
    // Each state by its number, in the order of discovery, with the step that leads to it.
    let mut known = HashMap::from([(start.clone(), 0)]);
    let mut ways: Vec<(usize, String)> = vec![(0, String::new())];
    let mut waiting = VecDeque::from([(0, start)]);
    while let Some((number, state)) = waiting.pop_front() {
        let next = model.next(&state);
        if let Some(wrong) = model.wrong(&state, next.is_empty()) {
            return Found::Wrong(wrong, steps(&ways, number));
        }
        for (step, state) in next {
            if !known.contains_key(&state) {
                known.insert(state.clone(), ways.len());
                waiting.push_back((ways.len(), state));
                ways.push((number, step));
            }
        }
    }
    Found::Nothing(known.len())
}

fn steps(ways: &[(usize, String)], mut number: usize) -> Vec<String> {
    let mut steps = Vec::new();
    while number != 0 {
        let (before, step) = &ways[number];
        steps.push(step.clone());
        number = *before;
    }
    steps.reverse();
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts up by one or two. It must not reach `wrong`.
    struct Counter {
        wrong: u32,
    }

    impl Model for Counter {
        type State = u32;

        fn start(&self) -> u32 {
            0
        }

        fn next(&self, state: &u32) -> Vec<(String, u32)> {
            let next = [state + 1, state + 2].into_iter().filter(|next| *next < 10);
            next.map(|next| (format!("to {next}"), next)).collect()
        }

        fn wrong(&self, state: &u32, is_last: bool) -> Option<String> {
            (*state == self.wrong).then(|| format!("{state}, last: {is_last}"))
        }
    }

    #[test]
    fn the_shortest_way_is_found_and_every_state_is_seen_once() {
        let Found::Wrong(wrong, steps) = search(&Counter { wrong: 9 }) else {
            panic!("it is reached");
        };
        assert_eq!((wrong.as_str(), steps.len()), ("9, last: true", 5));
        assert!(matches!(search(&Counter { wrong: 10 }), Found::Nothing(10)));
    }
}
