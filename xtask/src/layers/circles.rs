//! Finds circles in a graph.

use std::collections::{BTreeMap, BTreeSet};

/// Finds circles and returns the edges of each. For each set of nodes that all lead to each other,
/// it finds a shortest circle through one of them.
pub(super) fn find<'a>(edges: impl Iterator<Item = (&'a str, &'a str)>) -> Vec<Vec<Edge<'a>>> {
    let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (from, to) in edges {
        next.entry(from).or_default().insert(to);
    }
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for &start in next.keys() {
        if seen.contains(start) {
            continue;
        }
        if let Some(circle) = through(&next, start) {
            // No other circle of the same set of nodes is reported: one is enough to fix it.
            seen.extend(
                reached(&next, start).filter(|node| reached(&next, node).any(|n| n == start)),
            );
            found.push(circle);
        }
    }
    found
}

/// An edge: its start and its end.
pub(super) type Edge<'a> = (&'a str, &'a str);

/// A shortest circle through a node.
fn through<'a>(
    next: &BTreeMap<&'a str, BTreeSet<&'a str>>,
    start: &'a str,
) -> Option<Vec<Edge<'a>>> {
    let mut before: BTreeMap<&str, &str> = BTreeMap::new();
    let mut edge: Vec<&str> = vec![start];
    while !edge.is_empty() {
        let mut further = Vec::new();
        for from in edge {
            for &to in next.get(from).into_iter().flatten() {
                if to == start {
                    let mut circle = vec![(from, to)];
                    let mut at = from;
                    while at != start {
                        let from = before[at];
                        circle.push((from, at));
                        at = from;
                    }
                    circle.reverse();
                    return Some(circle);
                }
                if !before.contains_key(to) {
                    before.insert(to, from);
                    further.push(to);
                }
            }
        }
        edge = further;
    }
    None
}

/// All nodes that can be reached from a node.
fn reached<'a>(
    next: &BTreeMap<&'a str, BTreeSet<&'a str>>,
    start: &'a str,
) -> impl Iterator<Item = &'a str> {
    let mut found = BTreeSet::new();
    let mut open = vec![start];
    while let Some(node) = open.pop() {
        for &to in next.get(node).into_iter().flatten() {
            if found.insert(to) {
                open.push(to);
            }
        }
    }
    found.into_iter()
}
