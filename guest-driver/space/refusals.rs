// SPDX-License-Identifier: GPL-2.0

//! Handles mappings for which the device has no memory left.
//!
//! The driver does not wait for the reply to a `Map`. The answer to the fault behind it makes the
//! job retry: it finds no mapping and faults again. The space then gives up all its mappings and
//! starts over with what is requested, because a device keeps memory for a few tables of each
//! space. If the device refuses again and again, the faults are answered with `NoMemory`.
//!
//! Does not know faults.

use crate::{
    device::{
        command::{range_entry, Unmap},
        queue::{parse, Failure, Link, Message, Watch},
    },
    virtio::{Chain, Handler},
    wire::command::Status,
};
use kernel::{
    prelude::*,
    sync::{
        atomic::{Atomic, Relaxed},
        Arc,
    },
};

/// How often in a row a space may be refused memory although it has given up all its mappings.
const MOST: u32 = 8;

/// Checks the replies to the `Map`s of a space.
pub(crate) struct Refusals {
    /// How many were refused for lack of memory since the last success.
    in_a_row: Atomic<u32>,
    /// Whether one was refused since [`Self::make_room`].
    is_full: Atomic<bool>,
    watch: Arc<Watch>,
}

impl Handler for Refusals {
    fn completed(&self, chain: Arc<Chain>) {
        let status = chain.reply().and_then(parse).map(|(status, _)| status);
        match status {
            Some(Status::NoMemory) => {
                self.in_a_row.fetch_add(1, Relaxed);
                self.is_full.store(true, Relaxed);
            }
            _ => {
                if status == Some(Status::Ok) {
                    self.in_a_row.store(0, Relaxed);
                }
                self.watch.completed(chain);
            }
        }
    }
}

impl Refusals {
    /// No refusals yet. Passes all other replies to `watch`.
    pub(crate) fn new(watch: Arc<Watch>) -> Result<Arc<Self>> {
        let refusals = Self {
            in_a_row: Atomic::new(0),
            is_full: Atomic::new(false),
            watch,
        };
        Ok(Arc::new(refusals, GFP_KERNEL)?)
    }

    /// Unmaps everything that a space has mapped below `address_bits` bits, if it has been refused
    /// memory. The record stays as it is: it may contain more than is mapped.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if the device has refused memory again too often after that; the count then starts
    /// over. Otherwise what sending a request returns, except that a space that is gone is no
    /// error.
    pub(crate) fn make_room(&self, link: &Link, space: u32, address_bits: u32) -> Result {
        if !self.is_full.xchg(false, Relaxed) {
            return Ok(());
        }
        if self.in_a_row.load(Relaxed) > MOST {
            self.in_a_row.store(0, Relaxed);
            return Err(ENOMEM);
        }
        let all = 0..1_usize.checked_shl(address_bits).ok_or(EINVAL)?;
        let mut message = Message::<Unmap>::new(space, 1, 0)?;
        message.push(&range_entry(&all))?;
        match link.send(message) {
            Ok(_) | Err(Failure::Refused(Status::NoSpace)) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}
