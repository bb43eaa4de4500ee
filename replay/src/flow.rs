//! The cheapest flow through a network.
//!
//! Primal-dual: a search by distance (Dijkstra's, on reduced costs) finds how much one more unit of
//! flow costs at least, and all units that cost just that follow at once. It does not know what
//! flows.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// An arc, or the way back along one.
#[derive(Clone, Copy, Debug)]
struct Arc {
    to: usize,
    left: u64,
    cost: i64,
}

/// A network whose arcs all lead from a node to one with a higher number.
#[derive(Clone, Debug)]
pub struct Network {
    /// The arcs, each followed by the way back.
    arcs: Vec<Arc>,
    tails: Vec<usize>,
    nodes: usize,
}

/// A distance that no path has.
const FAR: i64 = i64::MAX;

impl Network {
    /// A network of so many nodes, without arcs.
    #[must_use]
    pub fn new(nodes: usize) -> Self {
        Self {
            arcs: Vec::new(),
            tails: Vec::new(),
            nodes,
        }
    }

    /// Adds an arc that lets so many units through, each at this cost. The sum of all costs has to
    /// be below 2^62.
    ///
    /// # Panics
    ///
    /// When it does not lead to a node with a higher number.
    pub fn arc(&mut self, from: usize, to: usize, capacity: u64, cost: i64) {
        assert!(from < to && to < self.nodes, "an arc leads forward");
        self.tails.push(from);
        self.arcs.push(Arc {
            to,
            left: capacity,
            cost,
        });
        self.tails.push(to);
        self.arcs.push(Arc {
            to: from,
            left: 0,
            cost: -cost,
        });
    }

    /// The cost of the cheapest flow of at most so many units from the first node to the last one:
    /// zero if there is none that costs less.
    #[must_use]
    pub fn cheapest(self, most: u64) -> i64 {
        let mut search = Search::new(self);
        let mut cost = 0;
        let mut left = most;
        while left > 0 {
            let Some(each) = search.distance().filter(|each| *each < 0) else {
                break;
            };
            let units = search.push(left);
            debug_assert!(units > 0, "the search has found a path");
            cost += each * i64::try_from(units).expect("far below 2^63");
            left -= units;
        }
        cost
    }
}

/// A network with the arcs that leave each node, and the state of the search.
struct Search {
    arcs: Vec<Arc>,
    /// The arcs by the node that they leave: those of node `n` are between `starts[n]` and
    /// `starts[n + 1]`.
    leaving: Vec<usize>,
    starts: Vec<usize>,
    nodes: usize,
    /// No arc that can take more has a negative cost when these are added at its tail and
    /// subtracted at its head.
    potentials: Vec<i64>,
    distances: Vec<i64>,
    fresh: bool,
}

impl Search {
    fn new(network: Network) -> Self {
        let Network { arcs, tails, nodes } = network;
        let mut starts = vec![0; nodes + 1];
        for tail in &tails {
            starts[tail + 1] += 1;
        }
        for node in 0..nodes {
            starts[node + 1] += starts[node];
        }
        let mut places = starts.clone();
        let mut leaving = vec![0; arcs.len()];
        for (arc, tail) in tails.iter().enumerate() {
            leaving[places[*tail]] = arc;
            places[*tail] += 1;
        }
        Self {
            arcs,
            leaving,
            starts,
            nodes,
            potentials: vec![0; nodes],
            distances: vec![FAR; nodes],
            fresh: true,
        }
    }

    /// The least cost of one more unit, if another one can flow. Makes all arcs on a cheapest path
    /// cost nothing in reduced costs.
    fn distance(&mut self) -> Option<i64> {
        if self.fresh {
            self.fresh = false;
            self.first_potentials();
        } else {
            self.shortest();
        }
        let sink = self.potentials[self.nodes - 1];
        (sink != FAR).then(|| sink - self.potentials[0])
    }

    /// Distances in the network without any flow, where arcs lead forward only: costs may be
    /// negative, and one pass over the nodes is enough.
    fn first_potentials(&mut self) {
        self.potentials.fill(FAR);
        self.potentials[0] = 0;
        for node in 0..self.nodes {
            let here = self.potentials[node];
            if here == FAR {
                continue;
            }
            for index in self.starts[node]..self.starts[node + 1] {
                let Arc { to, left, cost } = self.arcs[self.leaving[index]];
                if left > 0 {
                    self.potentials[to] = self.potentials[to].min(here + cost);
                }
            }
        }
    }

    /// Adds the distances in reduced costs to the potentials, up to that of the last node: the search
    /// ends there.
    fn shortest(&mut self) {
        let sink = self.nodes - 1;
        self.distances.fill(FAR);
        self.distances[0] = 0;
        let mut queue = BinaryHeap::from([Reverse((0, 0))]);
        let mut farthest = FAR;
        while let Some(Reverse((distance, node))) = queue.pop() {
            if distance > self.distances[node] {
                continue;
            }
            if node == sink {
                farthest = distance;
                break;
            }
            for index in self.starts[node]..self.starts[node + 1] {
                let Arc { to, left, cost } = self.arcs[self.leaving[index]];
                if left == 0 || self.potentials[to] == FAR {
                    continue;
                }
                let reduced = cost + self.potentials[node] - self.potentials[to];
                debug_assert!(reduced >= 0, "an arc has a negative reduced cost");
                let there = distance + reduced;
                if there < self.distances[to] {
                    self.distances[to] = there;
                    queue.push(Reverse((there, to)));
                }
            }
        }
        if farthest == FAR {
            self.potentials[sink] = FAR;
            return;
        }
        for (potential, distance) in self.potentials.iter_mut().zip(&self.distances) {
            if *potential != FAR {
                *potential += (*distance).min(farthest);
            }
        }
    }

    /// Sends units, at most so many, along paths that cost nothing in reduced costs, until a search
    /// in depth finds no more. Returns how many.
    fn push(&mut self, most: u64) -> u64 {
        let sink = self.nodes - 1;
        let mut next: Vec<usize> = self.starts[..self.nodes].to_vec();
        // Nodes on the path, and those that lead nowhere. A node that leads nowhere only because of
        // the path is left to the next search.
        let mut seen = vec![false; self.nodes];
        let mut sent = 0;
        let mut path: Vec<usize> = Vec::new();
        seen[0] = true;
        while sent < most {
            let node = path.last().map_or(0, |arc| self.arcs[*arc].to);
            if node == sink {
                let room = path.iter().map(|arc| self.arcs[*arc].left).min();
                let units = room.unwrap_or(0).min(most - sent);
                sent += units;
                let mut keep = path.len();
                for (place, arc) in path.iter().enumerate() {
                    self.arcs[*arc].left -= units;
                    self.arcs[arc ^ 1].left += units;
                    if self.arcs[*arc].left == 0 {
                        keep = keep.min(place);
                    }
                }
                for arc in path.drain(keep..) {
                    seen[self.arcs[arc].to] = false;
                }
                continue;
            }
            let end = self.starts[node + 1];
            let mut found = None;
            while next[node] < end {
                let arc = self.leaving[next[node]];
                let Arc { to, left, cost } = self.arcs[arc];
                let is_free = left > 0
                    && !seen[to]
                    && self.potentials[to] != FAR
                    && cost + self.potentials[node] == self.potentials[to];
                if is_free {
                    found = Some(arc);
                    break;
                }
                next[node] += 1;
            }
            match (found, path.pop()) {
                (Some(arc), before) => {
                    path.extend(before);
                    path.push(arc);
                    seen[self.arcs[arc].to] = true;
                }
                // The node stays seen: it leads nowhere.
                (None, Some(arc)) => next[self.arcs[arc ^ 1].to] += 1,
                (None, None) => break,
            }
        }
        sent
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cheaper_way_is_taken_first_and_a_way_that_costs_something_never() {
        let mut network = Network::new(4);
        network.arc(0, 1, 2, -3);
        network.arc(0, 2, 5, -1);
        network.arc(1, 3, 9, 0);
        network.arc(2, 3, 9, 0);
        network.arc(0, 3, 9, 1);
        assert_eq!(network.clone().cheapest(1), -3);
        assert_eq!(network.clone().cheapest(3), -7);
        assert_eq!(network.cheapest(100), -11);
    }

    #[test]
    fn a_later_unit_sends_an_earlier_one_another_way() {
        // The best path of one unit is 0-1-2-3; the best two are 0-1-3 and 0-2-3.
        let mut network = Network::new(4);
        network.arc(0, 1, 1, -5);
        network.arc(1, 2, 1, -5);
        network.arc(2, 3, 1, -5);
        network.arc(0, 2, 1, -4);
        network.arc(1, 3, 1, -4);
        assert_eq!(network.clone().cheapest(1), -15);
        assert_eq!(network.cheapest(2), -18);
    }

    #[test]
    fn a_network_without_a_path_has_no_flow() {
        let mut network = Network::new(3);
        network.arc(0, 1, 1, -5);
        assert_eq!(network.cheapest(1), 0);
    }
}
