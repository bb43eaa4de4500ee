//! All attacks, by name.
//!
//! An attack gets a device that was just initialised and may leave it in any state: the health
//! check begins with a reset. If an attack knows the right answers, it checks them itself.

mod chains;
mod concurrency;
mod garbage;
mod limits;
mod requests;
mod rings;

use anyhow::Result;

use crate::session::Session;

/// One attack.
pub(crate) struct Attack {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// Carries out one round. An error is something that the device did wrong.
    pub(crate) run: fn(&mut Session, &mut fastrand::Rng) -> Result<()>,
}

/// Lists attacks under the names of their functions.
macro_rules! attacks {
    ($( $module:ident: $( $name:ident )+; )+) => {
        &[ $( $( Attack { name: stringify!($name), run: $module::$name }, )+ )+ ]
    };
}

/// Every attack.
pub(crate) const ATTACKS: &[Attack] = attacks! {
    requests: mutated_control_requests mutated_copies mutated_fetches mutated_jobs requests_after_a_reset;
    limits: lists_of_every_length every_space every_job every_page_table;
    garbage: random_bytes flipped_bits garbage_on_the_fault_queue;
    chains: broken_chains broken_indirect_tables chains_cut_into_bytes replies_without_room;
    rings: jumping_indices impossible_heads heads_used_twice buffers_inside_the_rings
        entangled_queues odd_queue_sizes writes_to_the_configuration;
    concurrency: invalidation_under_jobs destruction_under_faults unanswered_faults
        no_fault_buffers unknown_faults endless_retries bytes_changed_after_the_kick
        reset_under_load kick_storm;
};

/// One of these, at random.
fn pick<T: Copy>(random: &mut fastrand::Rng, from: &[T]) -> T {
    from[random.usize(..from.len())]
}
