//! A queue as it moves: chains taken, served and returned under one lock.
//!
//! Whoever moves chains holds the lane's state, so that a stop, which takes it too, comes
//! after the last chain that was moved.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use log::Level;
use parking_lot::{Mutex, MutexGuard};
use vhost_user_backend::{VringRwLock, VringState, VringT};
use virtio_hmm_spec::wire::Queue;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

use super::window::Window;
use super::QUEUE_SIZE;
use crate::device::Accelerator;
use crate::inject::{self, Injector, ReplyMishap};
use crate::queue::{self, Available, Broken, Chain, Nearby};
use crate::report::Limited;

/// One queue.
pub(super) struct Lane {
    pub(super) queue: Queue,
    pub(super) vring: OnceLock<VringRwLock>,
    /// Held by whoever moves chains, so that a stop can wait for the end of that.
    pub(super) moves: Mutex<Moves>,
    unusable: Limited,
    injector: Arc<Injector>,
    /// How long to look for requests. Only on the control queue, whose requests are short and
    /// of which nobody else needs the lane: two threads that look would take the processors
    /// away from each other.
    window: Option<Window>,
}

/// What belongs to whoever moves a queue's chains.
#[derive(Debug)]
pub(super) struct Moves {
    pub(super) state: State,
    pub(super) returned: Returned,
    /// Room for a chain, so that a lone request finds it as well.
    spare: Chain,
}

/// Chains on their way back to the driver.
#[derive(Debug, Default)]
pub(super) struct Returned {
    /// Those that it does not see yet: their heads, and how many bytes of each were written.
    hidden: Vec<(u16, u32)>,
    /// It must see them before anything else is served.
    urgent: bool,
    /// Where the used ring stood when the driver was last told, or did not want to be.
    pub(super) told: u16,
}

impl Returned {
    /// Lets the driver see all of them.
    fn publish(&mut self, ring: &mut VringState, memory: &Nearby<'_>) -> Result<(), Broken> {
        self.urgent = false;
        let published = queue::put_back(ring.get_queue_mut(), memory, &self.hidden);
        self.hidden.clear();
        published
    }
}

/// How many replies at most the driver comes to see together: as many as take some microseconds.
const MOST_TOGETHER: usize = 32;

/// Whether a queue moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It does not, since it stood at these positions: available and used.
    Stopped(Option<(u16, u16)>),
    /// It does.
    Running,
    /// It does not, because its ring makes no sense, until it is stopped.
    Broken,
}

impl Lane {
    pub(super) fn new(queue: Queue, injector: &Arc<Injector>, poll: Duration) -> Self {
        Self {
            queue,
            vring: OnceLock::new(),
            moves: Mutex::new(Moves {
                state: State::Stopped(None),
                returned: Returned::default(),
                spare: Chain::default(),
            }),
            unusable: Limited::default(),
            injector: Arc::clone(injector),
            window: (queue == Queue::Control && !poll.is_zero()).then(|| Window::new(poll)),
        }
    }

    /// The queue, if it moves.
    pub(super) fn running<'a>(&'a self, memory: &'a GuestMemoryMmap) -> Option<Moving<'a>> {
        let mut moves = self.moves.lock();
        let vring = self.vring.get()?;
        // A ring that broke has left what could not be returned.
        moves.returned.hidden.clear();
        (moves.state == State::Running).then_some(Moving {
            lane: self,
            vring,
            memory: Nearby::new(memory),
            moves,
        })
    }
}

/// A queue that moves, held by whoever moves it.
pub(super) struct Moving<'a> {
    lane: &'a Lane,
    vring: &'a VringRwLock,
    memory: Nearby<'a>,
    moves: MutexGuard<'a, Moves>,
}

/// When the driver is to see a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// At once: somebody may wait for it.
    Soon,
    /// With those that follow: hardly anybody waits for it, and the ring's index, which the
    /// driver's processor looks at meanwhile, is written once for all of them.
    Together,
}

impl Moving<'_> {
    /// Does something with the ring unless it is broken or stopped, or found to be. The driver
    /// sees what was returned until now.
    fn with_ring<T>(
        &mut self,
        action: impl FnOnce(&mut VringState, &Nearby<'_>) -> Result<T, Broken>,
    ) -> Option<T> {
        self.hold_ring(|ring, memory, returned| {
            returned.publish(ring, memory)?;
            action(ring, memory)
        })
    }

    /// The same, but that it is for the action to say what the driver sees.
    fn hold_ring<T>(
        &mut self,
        action: impl FnOnce(&mut VringState, &Nearby<'_>, &mut Returned) -> Result<T, Broken>,
    ) -> Option<T> {
        if self.moves.state != State::Running {
            return None;
        }
        let mut ring = self.vring.get_mut();
        match action(&mut ring, &self.memory, &mut self.moves.returned) {
            Ok(value) => Some(value),
            Err(error) => {
                // The driver's mistake; once for each time that it sets its rings up.
                log::warn!(
                    "{} queue: {error}; it stays so until reset",
                    self.lane.queue.name()
                );
                self.moves.state = State::Broken;
                None
            }
        }
    }

    /// Takes the next chain; those that cannot be used go back. A reply and the look for the next
    /// request take the ring's lock once.
    pub(super) fn take(
        &mut self,
        accelerator: &Accelerator,
        most: usize,
        chain: &mut Chain,
    ) -> Option<()> {
        loop {
            let available = self.hold_ring(|ring, memory, returned| {
                if returned.urgent {
                    returned.publish(ring, memory)?;
                }
                let available = if ring.is_enabled() && queue::is_ready(ring.get_queue()) {
                    queue::take(ring.get_queue_mut(), memory, most, chain)?
                } else {
                    Available::Nothing
                };
                if available == Available::Nothing {
                    returned.publish(ring, memory)?;
                }
                Ok(available)
            })?;
            match available {
                Available::Nothing => return None,
                Available::Chain => return Some(()),
                Available::Unusable(head) => {
                    self.drop_chain(accelerator, head, "makes no sense");
                }
            }
        }
    }

    /// Returns a chain that cannot be answered.
    pub(super) fn drop_chain(&mut self, accelerator: &Accelerator, head: Option<u16>, why: &str) {
        accelerator.count_dropped_chain();
        self.lane.unusable.log(
            Level::Warn,
            format_args!(
                "{} queue: the driver sent a chain that {why}",
                self.lane.queue.name()
            ),
        );
        if let Some(head) = head {
            self.put_back(head, 0, Seen::Soon);
        }
    }

    /// Writes a reply and returns the chain.
    pub(super) fn answer(&mut self, chain: &Chain, reply: &mut [u8], seen: Seen) {
        let Some((mishap, number)) = self.lane.injector.reply_mishap(self.lane.queue) else {
            let written = chain.reply(&self.memory, reply);
            return self.put_back(chain.head(), written, seen);
        };
        if mishap == ReplyMishap::Garbled {
            inject::garble(reply, number);
        }
        let (head, written) = (chain.head(), chain.reply(&self.memory, reply));
        let (head, written) = match mishap {
            ReplyMishap::Lost => return,
            ReplyMishap::Short => (head, written / 2),
            ReplyMishap::Long => (head, u32::MAX),
            ReplyMishap::Garbled | ReplyMishap::Repeated => (head, written),
            ReplyMishap::Stray => {
                let size = self.vring.get_ref().get_queue().size();
                ((head + 1) % size, written)
            }
        };
        self.put_back(head, written, seen);
        if mishap == ReplyMishap::Repeated {
            self.put_back(head, written, seen);
        }
    }

    fn put_back(&mut self, head: u16, written: u32, seen: Seen) {
        let returned = &mut self.moves.returned;
        returned.hidden.push((head, written));
        returned.urgent |= seen == Seen::Soon || returned.hidden.len() >= MOST_TOGETHER;
    }

    pub(super) fn untake(&mut self) {
        self.with_ring(|ring, _| {
            queue::untake(ring.get_queue_mut());
            Ok(())
        });
    }

    /// Tells the driver of what was returned, if it wants to hear of it.
    pub(super) fn signal(&mut self) {
        self.hold_ring(|ring, memory, returned| {
            returned.publish(ring, memory)?;
            let (_, now) = queue::position(ring.get_queue());
            let told = std::mem::replace(&mut returned.told, now);
            if told != now && queue::wants_interrupt(ring.get_queue(), memory, told)? {
                if let Err(error) = ring.signal_used_queue() {
                    log::error!("cannot send an interrupt: {error}");
                }
            }
            Ok(())
        });
    }

    pub(super) fn refuse_kicks(&mut self) {
        self.with_ring(|ring, memory| queue::refuse_kicks(ring.get_queue_mut(), memory));
    }

    /// Looks whether something comes while that is worth it; returns whether it did.
    fn look(&mut self) -> bool {
        let lane = self.lane;
        let Some(window) = &lane.window else {
            return false;
        };
        window.look(|| {
            let looked = self.with_ring(|ring, memory| {
                Ok(ring.is_enabled() && queue::has_more(ring.get_queue(), memory)?)
            });
            looked.unwrap_or(false)
        })
    }

    /// Asks for kicks; returns whether there is something to take already.
    pub(super) fn ask_for_kicks(&mut self) -> bool {
        self.with_ring(|ring, memory| {
            if !ring.is_enabled() || !queue::is_ready(ring.get_queue()) {
                return Ok(false);
            }
            queue::ask_for_kicks(ring.get_queue_mut(), memory)
        })
        .unwrap_or(false)
    }

    /// Takes and serves chains until there are none, one interrupt for each ring's worth.
    pub(super) fn drain(
        &mut self,
        accelerator: &Accelerator,
        most: usize,
        mut serve: impl FnMut(&mut Self, &mut Chain),
    ) {
        self.refuse_kicks();
        let mut chain = std::mem::take(&mut self.moves.spare);
        loop {
            let mut served = 0;
            while served < QUEUE_SIZE {
                if self.take(accelerator, most, &mut chain).is_none() {
                    break;
                }
                if let (0, Some(window)) = (served, &self.lane.window) {
                    window.busy();
                }
                serve(self, &mut chain);
                served += 1;
            }
            self.signal();
            if served < QUEUE_SIZE && !self.look() && !self.ask_for_kicks() {
                self.moves.spare = chain;
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use virtio_queue::desc::{split::Descriptor, RawDescriptor};
    use virtio_queue::mock::MockSplitQueue;
    use vm_memory::{GuestAddress, GuestMemoryAtomic};

    use super::*;
    use crate::device::DeviceConfig;

    const CHAINS: u16 = 5;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    fn accelerator() -> Accelerator {
        let memory = 1 << 20;
        let others = DeviceConfig::default();
        Accelerator::new(DeviceConfig { memory, ..others }).unwrap()
    }

    /// A ring with a reply's room and nothing else in each chain; the second one is of no use.
    fn driver(memory: &GuestMemoryMmap) -> MockSplitQueue<'_, GuestMemoryMmap> {
        let driver = MockSplitQueue::new(memory, 16);
        let room = |chain: u16| if chain == 1 { 1 << 40 } else { 0x1_0000 };
        let chains = (0..CHAINS).map(|chain| Descriptor::new(room(chain), 64, 2, 0));
        let chains: Vec<_> = chains.map(RawDescriptor::from).collect();
        driver.add_desc_chains(&chains, 0).unwrap();
        driver
    }

    /// A lane that moves these chains.
    fn lane(
        memory: &GuestMemoryMmap,
        driver: &MockSplitQueue<'_, GuestMemoryMmap>,
        accelerator: &Accelerator,
    ) -> Lane {
        let vring = VringRwLock::new(GuestMemoryAtomic::new(memory.clone()), 16).unwrap();
        let (table, available) = (driver.desc_table_addr(), driver.avail_addr());
        let used = driver.used_addr();
        vring.set_queue_info(table.0, available.0, used.0).unwrap();
        vring.set_queue_ready(true);
        vring.set_enabled(true);
        let lane = Lane::new(Queue::Dma, accelerator.injector(), Duration::ZERO);
        lane.vring.get_or_init(|| vring);
        lane.moves.lock().state = State::Running;
        lane
    }

    #[test]
    fn each_reply_is_there_before_the_next_request_is_served() {
        let (memory, accelerator) = (memory(), accelerator());
        let driver = driver(&memory);
        let lane = lane(&memory, &driver, &accelerator);
        let returned = || u16::from_le(driver.used().idx().load());
        let mut served = Vec::new();
        let mut moving = lane.running(&memory).unwrap();
        moving.drain(&accelerator, 0, |moving, chain| {
            served.push((chain.head(), returned()));
            let byte = chain.head().to_le_bytes()[0];
            moving.answer(chain, &mut [byte; 4], Seen::Soon);
        });
        drop(moving);
        assert_eq!(served, [(0, 0), (2, 2), (3, 3), (4, 4)]);
        assert_eq!(returned(), CHAINS);
        let order = (0..usize::from(CHAINS)).map(|place| {
            let element = driver.used().ring().ref_at(place).unwrap().load();
            (element.id(), element.len())
        });
        let expected = [(0, 4), (1, 0), (2, 4), (3, 4), (4, 4)];
        assert_eq!(order.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn replies_that_nobody_waits_for_are_seen_together() {
        let (memory, accelerator) = (memory(), accelerator());
        let driver = driver(&memory);
        let lane = lane(&memory, &driver, &accelerator);
        let returned = || u16::from_le(driver.used().idx().load());
        let mut seen = Vec::new();
        let mut moving = lane.running(&memory).unwrap();
        moving.drain(&accelerator, 0, |moving, chain| {
            seen.push((chain.head(), returned()));
            let when = if chain.head() == 3 {
                Seen::Soon
            } else {
                Seen::Together
            };
            moving.answer(chain, &mut [0; 4], when);
        });
        drop(moving);
        // What is of no use goes back at once, and the one before it with it.
        assert_eq!(seen, [(0, 0), (2, 2), (3, 2), (4, 4)]);
        assert_eq!(returned(), CHAINS);
    }

    #[test]
    fn what_was_not_returned_when_a_ring_broke_never_is() {
        let (memory, accelerator) = (memory(), accelerator());
        let driver = driver(&memory);
        let lane = lane(&memory, &driver, &accelerator);
        let available = |index: u16| driver.avail().idx().store(index.to_le());
        let mut moving = lane.running(&memory).unwrap();
        moving.drain(&accelerator, 0, |moving, chain| {
            available(u16::MAX);
            let next = moving.take(&accelerator, 0, &mut Chain::default());
            assert!(next.is_none());
            moving.answer(chain, &mut [0; 4], Seen::Soon);
        });
        drop(moving);
        assert_eq!(lane.moves.lock().state, State::Broken);
        assert!(lane.running(&memory).is_none());
        // As a driver that starts anew leaves it, with nothing to be done.
        available(1);
        lane.moves.lock().state = State::Running;
        let mut moving = lane.running(&memory).unwrap();
        moving.drain(&accelerator, 0, |_, _| panic!("there is nothing"));
        assert_eq!(driver.used().idx().load(), 0);
    }
}
