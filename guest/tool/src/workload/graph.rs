//! Searches a random graph, breadth first.

use anyhow::Result;
use fastrand::Rng;
use hmm::work::{self, Reach};
use hmm_tool::runner::WorkloadCtx;

use crate::cpu;

/// Edges for each vertex, on average: enough to reach most vertices, but not all.
const DEGREE: usize = 4;

/// A directed graph in compressed sparse rows.
struct Graph {
    offsets: Vec<u64>,
    edges: Vec<u32>,
}

impl Graph {
    /// Edges between vertices chosen at random.
    fn random(edges: usize, random: &mut Rng) -> Self {
        let vertices = u32::try_from(edges / DEGREE).unwrap_or(u32::MAX - 2).max(1);
        let mut pairs: Vec<_> = (0..edges)
            .map(|_| (random.u32(..vertices), random.u32(..vertices)))
            .collect();
        pairs.sort_unstable();
        let mut offsets = vec![0; vertices as usize + 1];
        for &(from, _) in &pairs {
            offsets[from as usize + 1] += 1;
        }
        for vertex in 0..vertices as usize {
            offsets[vertex + 1] += offsets[vertex];
        }
        Self {
            offsets,
            edges: pairs.into_iter().map(|(_, to)| to).collect(),
        }
    }
}

/// Distances from one vertex to all others.
pub(super) fn bfs(ctx: &mut WorkloadCtx<'_>) -> Result<()> {
    let graph = Graph::random(ctx.size(), &mut ctx.random);
    let vertices = graph.offsets.len() - 1;
    let start = ctx.random.u32(..u32::try_from(vertices)?);
    let (mut levels, mut queue) = (vec![7; vertices], vec![0; vertices]);
    let search = work::bfs(
        &graph.offsets,
        &graph.edges,
        start.into(),
        &mut levels,
        &mut queue,
    );
    let reach = ctx.on_device(search)?;
    let expected = ctx.on_cpu(|| cpu::bfs(&graph.offsets, &graph.edges, start));
    let difference = levels
        .iter()
        .zip(&expected)
        .position(|(device, cpu)| device != cpu);
    ctx.check_equal("first vertex with another distance", difference, None);
    ctx.check_equal("reach", reach, reach_of(&expected));
    ctx.report.note = format!("{} of {vertices} vertices reached", reach.vertices);
    Ok(())
}

fn reach_of(levels: &[u32]) -> Reach {
    let reached = || levels.iter().filter(|&&level| level != u32::MAX);
    Reach {
        vertices: reached().count() as u64,
        depth: reached().max().copied().unwrap_or(0).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_graph_has_all_its_edges_and_a_search_does_not_reach_everything() {
        let graph = Graph::random(40_000, &mut Rng::with_seed(3));
        assert_eq!(graph.edges.len(), 40_000);
        assert_eq!(graph.offsets.last(), Some(&40_000));
        assert!(graph.offsets.is_sorted());
        let reach = reach_of(&cpu::bfs(&graph.offsets, &graph.edges, graph.edges[0]));
        assert!(
            reach.vertices > 5_000 && reach.vertices < 10_000,
            "{reach:?}"
        );
        assert!(reach.depth > 3);
    }
}
