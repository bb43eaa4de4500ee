//! Lists, trees and graphs.

use super::layout::Layout;
use super::memory::BASE;
use proptest::prelude::*;
use std::collections::VecDeque;
use virtio_hmm_spec::wire::command::Status;
use virtio_hmm_spec::wire::operation::{Bfs, ListWalk, TreeSearch, TreeSum};

/// Bytes of a node: three words and an odd rest, so that nodes cross pages at odd offsets.
const NODE: usize = 27;

/// Lays out nodes of three words in the order that `order` shuffles; returns their addresses.
fn place_nodes(layout: &mut Layout, order: &[usize]) -> Vec<u64> {
    let first = layout.put(&vec![0_u8; order.len() * NODE]);
    order
        .iter()
        .map(|place| first + (place * NODE) as u64)
        .collect()
}

/// Some count of nodes and a permutation of their places.
fn permutation(most: usize) -> impl Strategy<Value = Vec<usize>> {
    (0..most).prop_flat_map(|count| Just((0..count).collect::<Vec<_>>()).prop_shuffle())
}

/// A list: its head, and the layout that holds it. The value is at 0, the link at 11.
fn list(order: &[usize], values: impl Fn(usize) -> u64) -> (Layout, Vec<u64>) {
    let mut layout = Layout::default();
    let nodes = place_nodes(&mut layout, order);
    for (i, node) in nodes.iter().enumerate() {
        layout.set(*node, &[values(i)]);
        layout.set(node + 11, &[nodes.get(i + 1).copied().unwrap_or(0)]);
    }
    (layout, nodes)
}

/// A tree with the keys in the order of their insertion: key at 0, left at 8, right at 19.
fn tree(order: &[usize], keys: &[u64]) -> (Layout, Vec<u64>) {
    let mut layout = Layout::default();
    let nodes = place_nodes(&mut layout, order);
    let link =
        |layout: &Layout, address| u64::from_le_bytes(layout.bytes(address, 8).try_into().unwrap());
    for (node, key) in nodes.iter().zip(keys) {
        layout.set(*node, &[*key]);
        let mut parent = nodes[0];
        while parent != *node {
            let side = parent + if *key < link(&layout, parent) { 8 } else { 19 };
            match link(&layout, side) {
                0 => {
                    layout.set(side, &[*node]);
                    break;
                }
                next => parent = next,
            }
        }
    }
    (layout, nodes)
}

fn tree_search(root: u64, key: u64, limit: u64) -> TreeSearch {
    TreeSearch {
        root,
        left_offset: 8,
        right_offset: 19,
        key_offset: 0,
        key,
        limit,
    }
}

fn tree_sum(root: u64, limit: u64) -> TreeSum {
    TreeSum {
        root,
        left_offset: 8,
        right_offset: 19,
        value_offset: 0,
        limit,
    }
}

/// Levels by a reference implementation.
fn levels(offsets: &[u64], edges: &[u32], start: usize) -> Vec<u32> {
    let mut levels = vec![u32::MAX; offsets.len() - 1];
    levels[start] = 0;
    let mut queue = VecDeque::from([start]);
    while let Some(vertex) = queue.pop_front() {
        let at = |i: usize| usize::try_from(offsets[i]).unwrap();
        for edge in &edges[at(vertex)..at(vertex + 1)] {
            let next = usize::try_from(*edge).unwrap();
            if levels[next] == u32::MAX {
                levels[next] = levels[vertex] + 1;
                queue.push_back(next);
            }
        }
    }
    levels
}

/// A graph in memory, with room for the results.
struct Graph {
    layout: Layout,
    operation: Bfs,
}

fn graph(offsets: &[u64], edges: &[u32], start: u64) -> Graph {
    let vertices = offsets.len() - 1;
    let mut layout = Layout::default();
    let operation = Bfs {
        offsets: layout.put(offsets),
        edges: layout.put(edges),
        vertex_count: vertices as u64,
        edge_count: edges.len() as u64,
        start,
        levels: layout.put(&vec![7_u32; vertices]),
        queue: layout.put(&vec![7_u32; vertices]),
    };
    layout.put(&[1_u8]);
    Graph { layout, operation }
}

impl Graph {
    /// Checks the levels; the queue may hold anything.
    #[track_caller]
    fn expect_levels(&self, seed: u64, levels: &[u32]) {
        let reached = levels.iter().filter(|level| **level != u32::MAX);
        let greatest = reached.clone().max().unwrap();
        let results = [reached.count() as u64, u64::from(*greatest)];
        let mut expected = self.layout.clone();
        expected.set(self.operation.levels, levels);
        let room = self.operation.queue..self.operation.queue + 4 * levels.len() as u64;
        self.layout
            .expect_but(self.operation, seed, Status::Ok, &results, &expected, room);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn a_walk_visits_each_node_once(order in permutation(3000), modulus in 1_u64..5000, seed: u64) {
        let value = |i: usize| (i as u64 * 7919) % modulus;
        let (layout, nodes) = list(&order, value);
        let key = 5 % modulus;
        let count = nodes.len() as u64;
        let operation = ListWalk {
            head: nodes.first().copied().unwrap_or(0),
            next_offset: 11,
            value_offset: 0,
            key,
            limit: count,
        };
        let sum = (0..nodes.len()).map(value).sum();
        let found = (0..nodes.len()).find(|i| value(*i) == key).map_or(0, |i| nodes[i]);
        layout.expect(operation, seed, Status::Ok, &[count, sum, found], &layout);
        if count > 0 {
            let operation = ListWalk { limit: count - 1, ..operation };
            let (status, [visited, ..], _) = layout.run(operation, super::memory::Temper::Kind);
            assert_eq!((status, visited), (Status::Bound, count - 1));
        }
    }

    #[test]
    fn a_search_finds_the_key_or_says_that_there_is_none(
        order in permutation(400), keys in prop::collection::vec(0_u64..600, 400), seed: u64,
    ) {
        let (layout, nodes) = tree(&order, &keys);
        let root = nodes.first().copied().unwrap_or(0);
        for key in [0, 17, 300, 599, u64::MAX] {
            // The path by a reference implementation.
            let (mut node, mut visited, mut found) = (root, 0, 0);
            while node != 0 {
                let word = |at| u64::from_le_bytes(layout.bytes(at, 8).try_into().unwrap());
                visited += 1;
                if word(node) == key {
                    found = node;
                    break;
                }
                node = word(node + if key < word(node) { 8 } else { 19 });
            }
            let operation = tree_search(root, key, visited);
            layout.expect(operation, seed, Status::Ok, &[found, visited], &layout);
            if visited > 0 {
                let operation = tree_search(root, key, visited - 1);
                let results = [0, visited - 1];
                layout.expect(operation, seed, Status::Bound, &results, &layout);
            }
            prop_assert_eq!(found != 0, keys[..nodes.len()].contains(&key));
        }
    }

    #[test]
    fn a_sum_visits_each_node_of_a_tree_once(
        order in permutation(2000), keys in prop::collection::vec(any::<u64>(), 2000), seed: u64,
    ) {
        let (layout, nodes) = tree(&order, &keys);
        let root = nodes.first().copied().unwrap_or(0);
        let count = nodes.len() as u64;
        let sum = keys[..nodes.len()].iter().fold(0, |sum: u64, key| sum.wrapping_add(*key));
        layout.expect(tree_sum(root, count), seed, Status::Ok, &[count, sum], &layout);
        if count > 0 {
            let operation = tree_sum(root, count - 1);
            let (status, [visited, ..], _) = layout.run(operation, super::memory::Temper::Kind);
            assert_eq!((status, visited), (Status::Bound, count - 1));
        }
    }

    #[test]
    fn a_breadth_first_search_gives_each_vertex_its_distance(
        lists in prop::collection::vec(prop::collection::vec(any::<prop::sample::Index>(), 0..6), 1..1500),
        start: prop::sample::Index, seed: u64,
    ) {
        let vertices = lists.len();
        let mut offsets = vec![0];
        let mut edges = Vec::new();
        for list in &lists {
            edges.extend(list.iter().map(|to| u32::try_from(to.index(vertices)).unwrap()));
            offsets.push(edges.len() as u64);
        }
        let start = start.index(vertices);
        graph(&offsets, &edges, start as u64).expect_levels(seed, &levels(&offsets, &edges, start));
    }
}

#[test]
fn a_search_follows_more_edges_than_fit_into_a_block() {
    let vertices = 5000;
    let mut offsets = vec![5000_u64; vertices + 1];
    offsets[0] = 0;
    let edges: Vec<u32> = (0..5000).rev().collect();
    let mut expected = vec![1; vertices];
    expected[0] = 0;
    graph(&offsets, &edges, 0).expect_levels(9, &expected);
}

#[test]
fn a_walk_around_a_circle_ends_at_its_limit() {
    let (mut layout, nodes) = list(&[2, 0, 1], |i| i as u64);
    layout.set(nodes[2] + 11, &[nodes[0]]);
    let operation = ListWalk {
        head: nodes[0],
        next_offset: 11,
        value_offset: 0,
        key: 99,
        limit: 100_000,
    };
    layout.expect(operation, 1, Status::Bound, &[100_000, 99_999], &layout);
}

#[test]
fn a_link_may_point_to_the_middle_of_its_node() {
    let mut layout = Layout::default();
    let node = layout.put(&[5_u64, 0, 0]);
    let value_offset = 0_u64.wrapping_sub(8);
    let operation = ListWalk {
        head: node + 8,
        next_offset: 0,
        value_offset,
        key: 5,
        limit: 1,
    };
    layout.expect(operation, 1, Status::Ok, &[1, 5, node + 8], &layout);
}

#[test]
fn a_tree_may_be_as_deep_as_promised_and_no_deeper() {
    for side in [8, 19] {
        for (depth, status) in [(65_536, Status::Ok), (65_537, Status::Bound)] {
            let mut layout = Layout::default();
            let order: Vec<usize> = (0..depth).collect();
            let nodes = place_nodes(&mut layout, &order);
            for pair in nodes.windows(2) {
                layout.set(pair[0], &[1_u64]);
                layout.set(pair[0] + side, &[pair[1]]);
            }
            layout.set(nodes[depth - 1], &[1_u64]);
            let operation = tree_sum(nodes[0], u64::MAX);
            let (found, results, _) = layout.run(operation, super::memory::Temper::Kind);
            assert_eq!(found, status);
            assert_eq!(results, [65_536, 65_536, 0, 0]);
        }
    }
}

#[test]
fn a_tree_that_is_its_own_child_ends_at_its_bound() {
    let mut layout = Layout::default();
    let node = layout.put(&[0_u8; NODE]);
    layout.set(node + 8, &[node]);
    layout.set(node + 19, &[node]);
    let (status, ..) = layout.run(tree_sum(node, u64::MAX), super::memory::Temper::Kind);
    assert_eq!(status, Status::Bound);
}

#[test]
fn a_search_refuses_an_edge_to_nowhere() {
    let graph = graph(&[0, 2, 2], &[1, 2], 0);
    let (status, ..) = graph
        .layout
        .run(graph.operation, super::memory::Temper::Kind);
    assert_eq!(status, Status::BadArgument);
}

#[test]
fn a_search_refuses_offsets_that_are_none() {
    for offsets in [[0, 3, 2], [0, 1, 9], [u64::MAX, 0, 0]] {
        let graph = graph(&offsets, &[1, 1], 0);
        let (status, ..) = graph
            .layout
            .run(graph.operation, super::memory::Temper::Kind);
        let start_one = Bfs {
            start: 1,
            ..graph.operation
        };
        let (other, ..) = graph.layout.run(start_one, super::memory::Temper::Kind);
        assert!(
            [status, other].contains(&Status::BadArgument),
            "{offsets:?}"
        );
    }
}

#[test]
fn a_search_refuses_vertices_that_cannot_be() {
    let operation = Bfs {
        offsets: BASE,
        edges: BASE,
        vertex_count: 0,
        edge_count: 0,
        start: 0,
        levels: BASE,
        queue: BASE,
    };
    let layout = Layout::default();
    for (vertex_count, start) in [(0, 0), (5, 5), (u64::from(u32::MAX), 0), (1 << 32, 1 << 32)] {
        let operation = Bfs {
            vertex_count,
            start,
            ..operation
        };
        layout.expect(operation, 1, Status::BadArgument, &[], &layout);
    }
}
