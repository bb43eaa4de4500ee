//! A linked list and a binary tree, built as any program builds them.
//!
//! The nodes are boxes that own each other. `Option<Box<_>>` is a pointer that may be null; the
//! device need not know more.

use std::mem::offset_of;

use anyhow::Result;
use fastrand::Rng;
use hmm::work::{self, ListLayout, ListSummary, TreeHit, TreeLayout, TreeSummary};
use hmm_tool::runner::WorkloadCtx;

/// The number of keys that are searched, one after the other.
const SEARCHES: usize = 16;

/// Values are even, so that no list or tree has an odd one.
fn value(random: &mut Rng) -> u64 {
    random.u64(..) & !1
}

/// Boxes in an order that is independent of their addresses.
fn shuffled<N>(count: usize, random: &mut Rng, node: impl Fn(u64) -> N) -> Vec<Box<N>> {
    let mut nodes: Vec<_> = (0..count).map(|_| Box::new(node(value(random)))).collect();
    random.shuffle(&mut nodes);
    nodes
}

fn address<N>(node: &N) -> u64 {
    std::ptr::from_ref(node).addr() as u64
}

fn start<N>(node: Option<&N>) -> *const N {
    node.map_or(std::ptr::null(), std::ptr::from_ref)
}

struct ListNode {
    next: Option<Box<ListNode>>,
    value: u64,
}

struct List(Option<Box<ListNode>>);

impl List {
    const LAYOUT: ListLayout = ListLayout {
        next: offset_of!(ListNode, next),
        value: offset_of!(ListNode, value),
    };

    fn random(count: usize, random: &mut Rng) -> Self {
        let nodes = shuffled(count, random, |value| ListNode { next: None, value });
        let mut head = None;
        for mut node in nodes {
            node.next = head;
            head = Some(node);
        }
        Self(head)
    }

    fn nodes(&self) -> impl Iterator<Item = &ListNode> {
        std::iter::successors(self.0.as_deref(), |node| node.next.as_deref())
    }

    /// The expected result of the device's walk.
    fn walk(&self, key: u64) -> ListSummary {
        let mut summary = ListSummary {
            nodes: 0,
            sum: 0,
            found: None,
        };
        for node in self.nodes() {
            summary.nodes += 1;
            summary.sum = summary.sum.wrapping_add(node.value);
            if node.value == key && summary.found.is_none() {
                summary.found = Some(address(node));
            }
        }
        summary
    }
}

impl Drop for List {
    fn drop(&mut self) {
        // One after the other: nodes that free each other would need a deep stack.
        let mut head = self.0.take();
        while let Some(mut node) = head {
            head = node.next.take();
        }
    }
}

/// Sums up and searches a list by raw pointer.
pub(super) fn list(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let count = ctx.size();
    let list = List::random(count, &mut ctx.random);
    let limit = count as u64;
    let middle = list.nodes().nth(count / 2).map_or(0, |node| node.value);
    for key in [middle, 1] {
        let walk = work::list_walk(start(list.0.as_deref()), List::LAYOUT, key, limit);
        let device = ctx.on_device(walk)?;
        let cpu = ctx.on_cpu(|| list.walk(key));
        ctx.check_equal("walk", device, cpu);
    }
    Ok(())
}

struct TreeNode {
    left: Option<Box<TreeNode>>,
    right: Option<Box<TreeNode>>,
    key: u64,
}

struct Tree(Option<Box<TreeNode>>);

impl Tree {
    const LAYOUT: TreeLayout = TreeLayout {
        left: offset_of!(TreeNode, left),
        right: offset_of!(TreeNode, right),
        value: offset_of!(TreeNode, key),
    };

    fn random(count: usize, random: &mut Rng) -> Self {
        let nodes = shuffled(count, random, |key| TreeNode {
            left: None,
            right: None,
            key,
        });
        let mut root: Option<Box<TreeNode>> = None;
        for node in nodes {
            let mut slot = &mut root;
            while let Some(above) = slot {
                slot = if node.key < above.key {
                    &mut above.left
                } else {
                    &mut above.right
                };
            }
            *slot = Some(node);
        }
        Self(root)
    }

    /// The expected sum.
    fn sum(&self) -> TreeSummary {
        let mut summary = TreeSummary { nodes: 0, sum: 0 };
        let mut waiting: Vec<_> = self.0.as_deref().into_iter().collect();
        while let Some(node) = waiting.pop() {
            summary.nodes += 1;
            summary.sum = summary.sum.wrapping_add(node.key);
            waiting.extend(
                [&node.left, &node.right]
                    .into_iter()
                    .filter_map(Option::as_deref),
            );
        }
        summary
    }

    /// The expected result of a search.
    fn search(&self, key: u64) -> TreeHit {
        let mut hit = TreeHit {
            found: None,
            visited: 0,
        };
        let mut next = self.0.as_deref();
        while let Some(node) = next {
            hit.visited += 1;
            next = match key.cmp(&node.key) {
                std::cmp::Ordering::Equal => {
                    hit.found = Some(address(node));
                    break;
                }
                std::cmp::Ordering::Less => node.left.as_deref(),
                std::cmp::Ordering::Greater => node.right.as_deref(),
            };
        }
        hit
    }

    /// Keys of this tree, from all parts of it.
    fn some_keys(&self, random: &mut Rng) -> Vec<u64> {
        let mut keys = Vec::new();
        while let (true, Some(root)) = (keys.len() < SEARCHES, self.0.as_deref()) {
            let mut node = root;
            // A random walk down ends at a random node.
            while let (false, Some(below)) = (
                random.u8(..8) == 0,
                if random.bool() {
                    &node.left
                } else {
                    &node.right
                }
                .as_deref(),
            ) {
                node = below;
            }
            keys.push(node.key);
        }
        keys
    }
}

/// Sums up and searches a tree by raw pointer.
pub(super) fn tree(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let count = ctx.size();
    let tree = Tree::random(count, &mut ctx.random);
    let root = start(tree.0.as_deref());
    let limit = count as u64;

    let device = ctx.on_device(work::tree_sum(root, Tree::LAYOUT, limit))?;
    let cpu = ctx.on_cpu(|| tree.sum());
    ctx.check_equal("sum", device, cpu);

    let mut keys = tree.some_keys(&mut ctx.random);
    keys.push(1);
    for key in keys {
        let device = ctx.on_device(work::tree_search(root, Tree::LAYOUT, key, limit))?;
        let cpu = ctx.on_cpu(|| tree.search(key));
        ctx.check_equal("search", device, cpu);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_all_its_nodes_and_is_freed_without_a_deep_stack() {
        let list = List::random(200_000, &mut Rng::with_seed(1));
        let last = list.nodes().last().unwrap();
        let summary = list.walk(last.value);
        assert_eq!(summary.nodes, 200_000);
        assert_eq!(summary.found, Some(address(last)));
        assert_eq!(list.walk(1).found, None);
    }

    #[test]
    fn neighbours_in_a_list_are_not_neighbours_in_memory() {
        let list = List::random(1000, &mut Rng::with_seed(1));
        let addresses: Vec<_> = list.nodes().map(address).collect();
        let near = addresses
            .windows(2)
            .filter(|pair| pair[0].abs_diff(pair[1]) <= 64)
            .count();
        assert!(near < 50, "{near} of 1000 nodes lie beside the next one");
    }

    #[test]
    fn a_tree_finds_its_keys_and_no_others() {
        let mut random = Rng::with_seed(2);
        let tree = Tree::random(5000, &mut random);
        assert_eq!(tree.sum().nodes, 5000);
        let keys = tree.some_keys(&mut random);
        assert_eq!(keys.len(), SEARCHES);
        assert!(keys.iter().all(|&key| tree.search(key).found.is_some()));
        assert_eq!(tree.search(1).found, None);
        assert!(tree.search(1).visited < 100);
    }

    #[test]
    fn the_offsets_are_those_of_pointers_that_are_null_when_there_is_no_node() {
        let node = ListNode {
            next: None,
            value: 7,
        };
        let pointer = std::ptr::from_ref(&node.next).addr() - std::ptr::from_ref(&node).addr();
        assert_eq!(List::LAYOUT.next, pointer);
        assert_eq!(size_of::<Option<Box<ListNode>>>(), size_of::<usize>());
        assert!(start::<ListNode>(None).is_null());
    }
}
