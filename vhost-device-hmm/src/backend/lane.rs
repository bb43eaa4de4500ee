//! A running queue: chains are taken, served and returned under one lock.
//!
//! A thread that moves chains holds the lane's state. A stop takes the state too, so it comes after
//! the last chain that was moved. A thread that a rule delays releases the state and is counted. A
//! stop first ends such delays and then waits for these threads as well.

use std::io::ErrorKind;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hmm_timeline::device::Event;
use parking_lot::{Condvar, Mutex, MutexGuard};
use vhost_user_backend::{VringRwLock, VringState, VringT};
use virtio_hmm_spec::points::Point;
use virtio_hmm_spec::wire::Queue;
use virtio_queue::QueueT;
use vm_memory::GuestMemoryMmap;

use super::window::Window;
use crate::command;
use crate::device::Accelerator;
use crate::lateness::{self, About, Lateness, ReplyMishap};
use crate::queue::{self, Available, Broken, Chain, Nearby};
use crate::trace;

/// The largest ring that a driver may ask for.
pub(super) const QUEUE_SIZE: usize = 1024;

/// One queue.
pub(super) struct Lane {
    pub(super) queue: Queue,
    pub(super) vring: OnceLock<VringRwLock>,
    /// Held while chains are moved, so that a stop can wait until that ends.
    moves: Mutex<Moves>,
    /// The number of waiting threads that change the queue's configuration; they get the lock next.
    wanted: AtomicU32,
    /// The number of waiting threads that move chains themselves; they get the lock after at most
    /// one ring's worth of chains.
    waiting: AtomicU32,
    /// Signalled when a delayed thread has returned, or when the last chain was taken.
    back: Condvar,
    pub(super) lateness: Arc<Lateness>,
    /// Polling for requests. Only the control queue polls: its requests are short, and no other
    /// thread needs its lane. Two polling threads would compete for processors.
    window: Option<Window>,
}

/// The state of a queue, owned by the thread that moves its chains.
#[derive(Debug)]
pub(super) struct Moves {
    pub(super) state: State,
    pub(super) returned: Returned,
    /// A buffer for a chain, so that a lone request need not allocate one.
    spare: Chain,
    /// A thread takes chains, possibly with the lock released; only that thread may take more, to
    /// keep the ring's order.
    taking: bool,
    /// The number of threads that are delayed, with the lock released.
    late: usize,
    /// The number of these threads that have published chains and have yet to signal the driver.
    silent: usize,
}

/// Chains to be returned to the driver.
#[derive(Debug, Default)]
pub(super) struct Returned {
    /// Chains that are not published yet: their heads, and the bytes written to each.
    hidden: Vec<(u16, u32)>,
    /// A chain that is returned after the next one, or with the others if there is no next one.
    swapped: Option<(u16, u32)>,
    /// They must be published before anything else is served.
    urgent: bool,
    /// The used index when the driver was last signalled, or did not want a signal.
    pub(super) told: u16,
}

impl Returned {
    /// Publishes all of them to the driver.
    fn publish(&mut self, ring: &mut VringState, memory: &Nearby<'_>) -> Result<(), Broken> {
        self.urgent = false;
        self.hidden.extend(self.swapped.take());
        let published = queue::put_back(ring.get_queue_mut(), memory, &self.hidden);
        self.hidden.clear();
        published
    }
}

/// The longest wait for a lane whose state is only displayed.
const GLANCE: Duration = Duration::from_millis(100);

/// The points of a queue, in the order in which a chain passes them.
#[derive(Clone, Copy, Debug)]
struct Points {
    seen: Option<Point>,
    taken: Point,
    executed: Point,
    answered: Point,
    published: Point,
}

impl Points {
    fn of(queue: Queue) -> Self {
        use Point::*;
        match queue {
            Queue::Control => Self {
                seen: Some(ControlSeen),
                taken: ControlTaken,
                executed: ControlExecuted,
                answered: ControlAnswered,
                published: ControlPublished,
            },
            Queue::Dma => Self {
                seen: Some(DmaSeen),
                taken: DmaTaken,
                executed: DmaExecuted,
                answered: DmaAnswered,
                published: DmaPublished,
            },
            Queue::Submit => Self {
                seen: Some(SubmitSeen),
                taken: SubmitTaken,
                executed: SubmitEnded,
                answered: SubmitAnswered,
                published: SubmitPublished,
            },
            // The device looks for a buffer only when it has a fault to put into it.
            Queue::Fault => Self {
                seen: None,
                taken: FaultTaken,
                executed: FaultReported,
                answered: FaultFilled,
                published: FaultPublished,
            },
        }
    }
}

/// Whether rules may delay the thread that moves chains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// As rules say.
    Late,
    /// Never: other threads wait for this one.
    Prompt,
}

/// The most replies that are published together: they take some microseconds.
const MOST_TOGETHER: usize = 32;

/// Whether a queue is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Stopped; it stood at these positions: available and used.
    Stopped(Option<(u16, u16)>),
    /// Running.
    Running,
    /// Not running until it is stopped, because its ring is invalid.
    Broken,
}

impl Lane {
    pub(super) fn new(queue: Queue, lateness: &Arc<Lateness>, poll: Duration) -> Self {
        Self {
            queue,
            vring: OnceLock::new(),
            moves: Mutex::new(Moves {
                state: State::Stopped(None),
                returned: Returned::default(),
                spare: Chain::default(),
                taking: false,
                late: 0,
                silent: 0,
            }),
            wanted: AtomicU32::new(0),
            waiting: AtomicU32::new(0),
            back: Condvar::new(),
            lateness: Arc::clone(lateness),
            window: (queue == Queue::Control && !poll.is_zero()).then(|| Window::new(poll)),
        }
    }

    /// Locks the state and asks the thread that moves chains to give way. Without that, a ring that
    /// is never empty would keep the lock for ever.
    pub(super) fn hold(&self) -> MutexGuard<'_, Moves> {
        self.hold_counted(&self.wanted)
    }

    /// The same for a thread that returns chains. The queue's thread does not give way for each of
    /// them, so that an engine returns several ended jobs together.
    fn hold_in_turn(&self) -> MutexGuard<'_, Moves> {
        self.hold_counted(&self.waiting)
    }

    fn hold_counted(&self, count: &AtomicU32) -> MutexGuard<'_, Moves> {
        if let Some(moves) = self.moves.try_lock() {
            return moves;
        }
        count.fetch_add(1, Ordering::Relaxed);
        let moves = self.moves.lock();
        count.fetch_sub(1, Ordering::Relaxed);
        moves
    }

    /// Whether a thread waits for the state to change the queue's configuration.
    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) != 0
    }

    /// The queue, if it is running.
    pub(super) fn running<'a>(
        &'a self,
        memory: &'a GuestMemoryMmap,
        patience: Patience,
    ) -> Option<Moving<'a>> {
        let moves = self.hold_in_turn();
        let vring = self.vring.get()?;
        (moves.state == State::Running).then_some(Moving {
            lane: self,
            vring,
            memory: Nearby::new(memory),
            points: Points::of(self.queue),
            // Before a reset there were at most as many chains as a ring holds.
            left: match patience {
                Patience::Late => usize::MAX,
                Patience::Prompt => QUEUE_SIZE,
            },
            let_go: false,
            patience,
            moves,
        })
    }

    /// The lane's state, for the control socket; does not wait for a busy lane.
    pub(super) fn describe(&self) -> serde_json::Value {
        let name = self.queue.name().to_lowercase();
        let Some(moves) = self.moves.try_lock_for(GLANCE) else {
            return serde_json::json!({ "queue": name, "state": "busy" });
        };
        let state = match moves.state {
            State::Stopped(_) => "stopped",
            State::Running => "running",
            State::Broken => "broken",
        };
        let (late, hidden) = (moves.late, moves.returned.hidden.len());
        drop(moves);
        let position = self.vring.get();
        let (taken, returned) = position
            .map(|vring| queue::position(vring.get_ref().get_queue()))
            .unwrap_or_default();
        serde_json::json!({
            "queue": name,
            "state": state,
            "taken": taken,
            "returned": returned,
            "unpublished": hidden,
            "late": late,
        })
    }

    /// Waits until no thread is delayed, then returns with the lane held: all work that was begun
    /// is done. The delayed threads must not be blocked meanwhile by anything but the lane.
    pub(super) fn quiet(&self) -> MutexGuard<'_, Moves> {
        let mut moves = self.hold();
        while moves.late > 0 {
            self.back.wait(&mut moves);
        }
        moves
    }

    /// The same for a lane that stops: delayed threads continue.
    pub(super) fn stopping(&self) -> MutexGuard<'_, Moves> {
        self.lateness.stop(Some(self.queue));
        self.quiet()
    }
}

/// A running queue, locked by the thread that moves its chains.
pub(super) struct Moving<'a> {
    lane: &'a Lane,
    vring: &'a VringRwLock,
    memory: Nearby<'a>,
    points: Points,
    patience: Patience,
    /// The number of chains to serve before another thread may have the lane.
    left: usize,
    /// Another thread may have had the lane meanwhile.
    let_go: bool,
    moves: MutexGuard<'a, Moves>,
}

/// When a reply is published to the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// At once: a thread may wait for it.
    Soon,
    /// With the replies that follow, because threads rarely wait for it. The ring's index, which
    /// the driver's processor reads meanwhile, is then written once for all of them.
    Together,
}

impl Moving<'_> {
    /// Passes a point, with a delay if a rule says so. The lane is released during the delay. It
    /// may have been stopped afterwards, except for the chains that are held. {dev-late-chain}
    pub(super) fn pass(&mut self, point: Point, about: impl FnOnce() -> About) {
        let lateness = &self.lane.lateness;
        if !lateness.concerns(point) || self.patience == Patience::Prompt {
            return;
        }
        if let Some(wait) = lateness.arrive(point, about()) {
            self.moves.late += 1;
            MutexGuard::unlocked(&mut self.moves, || lateness.wait(wait, || false));
            self.moves.late -= 1;
            self.let_go = true;
            self.lane.back.notify_all();
        }
    }

    /// What rules can match of a chain.
    fn about(&self, chain: &Chain) -> About {
        command::about(self.lane.queue, chain.request())
    }

    /// Runs an action on the ring, unless the ring is broken or stopped, or turns out to be.
    /// Publishes what was returned before.
    fn with_ring<T>(
        &mut self,
        action: impl FnOnce(&mut VringState, &Nearby<'_>) -> Result<T, Broken>,
    ) -> Option<T> {
        self.hold_ring(|ring, memory, returned| {
            returned.publish(ring, memory)?;
            action(ring, memory)
        })
    }

    /// The same, but the action decides what is published.
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
                // A mistake of the driver. Logged once for each time that it sets its rings up.
                log::warn!(
                    "{} queue: {error}; it stays so until reset",
                    self.lane.queue.name()
                );
                self.moves.state = State::Broken;
                // These chains can no longer be returned.
                self.moves.returned.hidden.clear();
                self.moves.returned.swapped = None;
                None
            }
        }
    }

    /// Takes the next chain; returns unusable ones to the driver. The ring's lock is taken once for
    /// a reply and the next request. {dev-survive}
    pub(super) fn take(
        &mut self,
        accelerator: &Accelerator,
        most: usize,
        chain: &mut Chain,
    ) -> Option<()> {
        if let Some(seen) = self.points.seen {
            if self.lane.lateness.concerns(seen) && self.has_more() {
                self.pass(seen, About::default);
            }
        }
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
                Available::Chain => {
                    chain.set_taken(trace::begin());
                    if self.lane.lateness.concerns(self.points.taken) {
                        let about = self.about(chain);
                        self.pass(self.points.taken, || about);
                    }
                    return Some(());
                }
                Available::Unusable(head) => {
                    self.drop_chain(accelerator, head, "makes no sense");
                }
            }
        }
    }

    /// Whether the next chain is carried out before this one. {dev-order-copies}, {dev-order-jobs}
    fn swaps(&self, chain: &Chain) -> bool {
        let (lateness, taken) = (&self.lane.lateness, self.points.taken);
        self.patience == Patience::Late
            && lateness.concerns(taken)
            && lateness.swaps(taken, self.about(chain))
    }

    /// Returns a chain that cannot be answered. {dev-return-chain}
    pub(super) fn drop_chain(&mut self, accelerator: &Accelerator, head: Option<u16>, why: &str) {
        accelerator.count_dropped_chain();
        log::warn!(
            "{} queue: the driver sent a chain that {why}",
            self.lane.queue.name()
        );
        if let Some(head) = head {
            self.put_back(head, 0, Seen::Soon);
        }
    }

    /// Writes a reply and returns the chain. {dev-return-chain}
    pub(super) fn answer(&mut self, chain: &Chain, reply: &mut [u8], seen: Seen) {
        self.answer_as_rules_say(chain, reply, seen);
        // Jobs and faults are recorded by themselves.
        if let (Some(_), Queue::Control | Queue::Dma) = (chain.taken(), self.lane.queue) {
            let About { space, operation } = self.about(chain);
            trace::since(chain.taken(), space, || Event::Request {
                queue: self.lane.queue.name().to_lowercase().into(),
                operation: operation.map(Into::into),
            });
        }
    }

    fn answer_as_rules_say(&mut self, chain: &Chain, reply: &mut [u8], seen: Seen) {
        let Points {
            executed, answered, ..
        } = self.points;
        let lateness = &self.lane.lateness;
        if !lateness.concerns_any(&[executed, answered]) {
            let written = chain.reply(&self.memory, reply);
            return self.put_back(chain.head(), written, seen);
        }
        let about = self.about(chain);
        let mishap = lateness.reply_mishap(executed, about);
        self.pass(executed, || about);
        match mishap {
            Some((ReplyMishap::Garbled, number)) => lateness::garble(reply, number),
            Some((ReplyMishap::UnknownStatus, _)) => lateness::unknown_status(reply),
            Some((ReplyMishap::WrongResult, _)) => lateness::wrong_result(reply),
            _ => {}
        }
        let (head, written) = (chain.head(), chain.reply(&self.memory, reply));
        self.pass(answered, || about);
        let (head, written) = match mishap.map(|(mishap, _)| mishap) {
            Some(ReplyMishap::Lost) => return,
            Some(ReplyMishap::Short) => (head, written / 2),
            Some(ReplyMishap::Long) => (head, u32::MAX),
            Some(ReplyMishap::Stray) => {
                let size = self.vring.get_ref().get_queue().size();
                ((head + 1) % size, written)
            }
            None
            | Some(
                ReplyMishap::Garbled
                | ReplyMishap::UnknownStatus
                | ReplyMishap::WrongResult
                | ReplyMishap::Repeated,
            ) => (head, written),
        };
        // {dev-order-returned}
        if self.moves.returned.swapped.is_none() && self.lane.lateness.swaps(answered, about) {
            if self.moves.state == State::Running {
                self.moves.returned.swapped = Some((head, written));
            }
            return;
        }
        self.put_back(head, written, seen);
        if mishap.is_some_and(|(mishap, _)| mishap == ReplyMishap::Repeated) {
            self.put_back(head, written, seen);
        }
    }

    fn put_back(&mut self, head: u16, written: u32, seen: Seen) {
        if self.moves.state != State::Running {
            return;
        }
        let returned = &mut self.moves.returned;
        returned.hidden.push((head, written));
        let first = returned.swapped.take();
        returned.urgent |= seen == Seen::Soon || first.is_some();
        returned.hidden.extend(first);
        returned.urgent |= returned.hidden.len() >= MOST_TOGETHER;
    }

    pub(super) fn untake(&mut self) {
        self.with_ring(|ring, _| {
            queue::untake(ring.get_queue_mut());
            Ok(())
        });
    }

    /// Whether the ring has a chain to take.
    fn has_more(&mut self) -> bool {
        let has_more = self.hold_ring(|ring, memory, _| {
            let ready = ring.is_enabled() && queue::is_ready(ring.get_queue());
            Ok(ready && queue::has_more(ring.get_queue(), memory)?)
        });
        has_more.unwrap_or(false)
    }

    /// Publishes what was returned, and sends an interrupt if the driver wants one.
    pub(super) fn signal(&mut self) {
        let published = self.points.published;
        if self.lane.lateness.concerns(published) && self.patience == Patience::Late {
            let news = self.hold_ring(|ring, memory, returned| {
                returned.publish(ring, memory)?;
                Ok(queue::position(ring.get_queue()).1 != returned.told)
            });
            if news == Some(true) {
                self.moves.silent += 1;
                self.pass(published, About::default);
                self.moves.silent -= 1;
            }
        }
        if self.moves.silent > 0 {
            // Another thread is delayed before its interrupt, which will cover these chains too.
            self.with_ring(|_, _| Ok(()));
            return;
        }
        self.hold_ring(|ring, memory, returned| {
            returned.publish(ring, memory)?;
            let (_, now) = queue::position(ring.get_queue());
            let told = std::mem::replace(&mut returned.told, now);
            if told != now && queue::wants_interrupt(ring.get_queue(), memory, told)? {
                match ring.signal_used_queue() {
                    // An interrupt that the front end has not read yet stands for this one.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => log::warn!("cannot send an interrupt: {error}"),
                    Ok(()) => {}
                }
            }
            Ok(())
        });
    }

    /// Stops taking chains if another thread wants the lane or may have had it. If it returns true,
    /// the caller must look at the lane again before it uses it.
    #[must_use]
    pub(super) fn gives_way(&mut self) -> bool {
        self.gives_way_if(false)
    }

    /// The same, also if threads wait to return chains.
    fn gives_way_to_all(&mut self) -> bool {
        self.gives_way_if(self.lane.waiting.load(Ordering::Relaxed) != 0)
    }

    fn gives_way_if(&mut self, is_waited_for: bool) -> bool {
        let gives_way = is_waited_for || self.let_go || self.lane.is_wanted();
        if gives_way {
            self.with_ring(|_, _| Ok(()));
            self.end_taking();
            MutexGuard::unlocked_fair(&mut self.moves, || ());
        }
        gives_way
    }

    pub(super) fn refuse_kicks(&mut self) {
        self.with_ring(|ring, memory| queue::refuse_kicks(ring.get_queue_mut(), memory));
    }

    /// Polls for the next chain as long as that pays; returns whether one came.
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

    /// Asks for kicks; returns whether the ring has a chain already.
    pub(super) fn ask_for_kicks(&mut self) -> bool {
        self.with_ring(|ring, memory| {
            if !ring.is_enabled() || !queue::is_ready(ring.get_queue()) {
                return Ok(false);
            }
            queue::ask_for_kicks(ring.get_queue_mut(), memory)
        })
        .unwrap_or(false)
    }

    /// Begins to take chains. Returns false if a delayed thread is taking them, which then takes
    /// all.
    pub(super) fn begin_taking(&mut self) -> bool {
        !std::mem::replace(&mut self.moves.taking, true)
    }

    /// Ends taking, when the ring is empty.
    pub(super) fn end_taking(&mut self) {
        self.moves.taking = false;
        self.lane.back.notify_all();
    }

    /// Takes and serves chains until the ring is empty, with one interrupt for each ring's worth.
    /// Returns true if another thread may have had the lane before that. The caller must then look
    /// at the lane again, because the guest's memory may have changed.
    #[must_use]
    pub(super) fn drain(
        &mut self,
        accelerator: &Accelerator,
        most: usize,
        mut serve: impl FnMut(&mut Self, &mut Chain),
    ) -> bool {
        if self.patience == Patience::Prompt {
            while self.moves.taking {
                self.lane.back.wait(&mut self.moves);
            }
        }
        if !self.begin_taking() {
            return false;
        }
        self.refuse_kicks();
        let mut chain = std::mem::take(&mut self.moves.spare);
        loop {
            let mut served = 0;
            while served < QUEUE_SIZE.min(self.left) {
                // A prompt thread is soon done.
                if self.patience == Patience::Late && self.gives_way() {
                    self.moves.spare = chain;
                    return true;
                }
                // {dev-control-order}, {dev-submit-order}
                if self.take(accelerator, most, &mut chain).is_none() {
                    break;
                }
                if let (0, Some(window)) = (served, &self.lane.window) {
                    window.busy();
                }
                if self.swaps(&chain) {
                    let mut next = Chain::default();
                    if self.take(accelerator, most, &mut next).is_some() {
                        serve(self, &mut next);
                        served += 1;
                    }
                }
                serve(self, &mut chain);
                served += 1;
            }
            self.signal();
            if served == QUEUE_SIZE && self.patience == Patience::Late && self.gives_way_to_all() {
                self.moves.spare = chain;
                return true;
            }
            self.left = self.left.saturating_sub(served);
            let ends = self.left == 0 || (served < QUEUE_SIZE && !self.look());
            // From here on the driver kicks for what is left, if anything.
            if ends && (!self.ask_for_kicks() || self.left == 0) {
                self.moves.spare = chain;
                self.end_taking();
                return false;
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

    /// A ring whose chains only have room for a reply; the second chain is unusable.
    fn driver(memory: &GuestMemoryMmap) -> MockSplitQueue<'_, GuestMemoryMmap> {
        let driver = MockSplitQueue::new(memory, 16);
        let room = |chain: u16| if chain == 1 { 1 << 40 } else { 0x1_0000 };
        let chains = (0..CHAINS).map(|chain| Descriptor::new(room(chain), 64, 2, 0));
        let chains: Vec<_> = chains.map(RawDescriptor::from).collect();
        driver.add_desc_chains(&chains, 0).unwrap();
        driver
    }

    /// A running lane with these chains.
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
        let lane = Lane::new(Queue::Dma, accelerator.lateness(), Duration::ZERO);
        lane.vring.get_or_init(|| vring);
        lane.hold().state = State::Running;
        lane
    }

    // {dev-used-length}
    #[test]
    fn each_reply_is_there_before_the_next_request_is_served() {
        let (memory, accelerator) = (memory(), accelerator());
        let driver = driver(&memory);
        let lane = lane(&memory, &driver, &accelerator);
        let returned = || u16::from_le(driver.used().idx().load());
        let mut served = Vec::new();
        let mut moving = lane.running(&memory, Patience::Late).unwrap();
        let _ = moving.drain(&accelerator, 0, |moving, chain| {
            served.push((chain.head(), returned()));
            let byte = chain.head().to_le_bytes()[0];
            moving.answer(chain, &mut [byte; 4], Seen::Soon);
        });
        drop(moving);
        assert_eq!(served, [(0, 0), (2, 2), (3, 3), (4, 4)]);
        assert_eq!(returned(), CHAINS);
        let order = (0..usize::from(CHAINS)).map(|index| {
            let element = driver.used().ring().ref_at(index).unwrap().load();
            (element.id(), element.len())
        });
        let expected = [(0, 4), (1, 0), (2, 4), (3, 4), (4, 4)];
        assert_eq!(order.collect::<Vec<_>>(), expected);
    }

    #[test]
    fn a_ring_that_is_never_empty_keeps_no_thread_from_its_lane() {
        let (memory, accelerator) = (memory(), accelerator());
        let driver = driver(&memory);
        let lane = lane(&memory, &driver, &accelerator);
        std::thread::scope(|scope| {
            let mut moving = lane.running(&memory, Patience::Late).unwrap();
            let mut served = 0;
            let again = moving.drain(&accelerator, 0, |moving, chain| {
                moving.answer(chain, &mut [0; 4], Seen::Soon);
                // The ring is never empty.
                let next = u16::from_le(driver.avail().idx().load()).wrapping_add(1);
                driver.avail().idx().store(next.to_le());
                served += 1;
                if served == 1 {
                    scope.spawn(|| drop(lane.hold()));
                    while !lane.is_wanted() {
                        std::thread::yield_now();
                    }
                }
                assert!(served < 100, "the lane is kept");
            });
            assert!(again, "it is to be looked at anew");
        });
    }

    #[test]
    fn an_engine_with_an_ended_job_does_not_interrupt_what_is_taken() {
        let (memory, accelerator) = (memory(), accelerator());
        let driver = driver(&memory);
        let lane = lane(&memory, &driver, &accelerator);
        std::thread::scope(|scope| {
            let mut moving = lane.running(&memory, Patience::Late).unwrap();
            scope.spawn(|| drop(lane.running(&memory, Patience::Prompt)));
            while lane.waiting.load(Ordering::Relaxed) == 0 {
                std::thread::yield_now();
            }
            assert!(!moving.gives_way(), "in the middle of a ring");
            assert!(moving.gives_way_to_all(), "when a whole one was taken");
        });
    }

    #[test]
    fn replies_that_no_thread_waits_for_are_seen_together() {
        let (memory, accelerator) = (memory(), accelerator());
        let driver = driver(&memory);
        let lane = lane(&memory, &driver, &accelerator);
        let returned = || u16::from_le(driver.used().idx().load());
        let mut seen = Vec::new();
        let mut moving = lane.running(&memory, Patience::Late).unwrap();
        let _ = moving.drain(&accelerator, 0, |moving, chain| {
            seen.push((chain.head(), returned()));
            let when = if chain.head() == 3 {
                Seen::Soon
            } else {
                Seen::Together
            };
            moving.answer(chain, &mut [0; 4], when);
        });
        drop(moving);
        // An unusable chain goes back at once, together with the one before it.
        assert_eq!(seen, [(0, 0), (2, 2), (3, 2), (4, 4)]);
        assert_eq!(returned(), CHAINS);
    }

    #[test]
    fn what_was_not_returned_when_a_ring_broke_never_is() {
        let (memory, accelerator) = (memory(), accelerator());
        let driver = driver(&memory);
        let lane = lane(&memory, &driver, &accelerator);
        let available = |index: u16| driver.avail().idx().store(index.to_le());
        let mut moving = lane.running(&memory, Patience::Late).unwrap();
        let _ = moving.drain(&accelerator, 0, |moving, chain| {
            available(u16::MAX);
            let next = moving.take(&accelerator, 0, &mut Chain::default());
            assert!(next.is_none());
            moving.answer(chain, &mut [0; 4], Seen::Soon);
        });
        drop(moving);
        assert_eq!(lane.hold().state, State::Broken);
        assert!(lane.running(&memory, Patience::Late).is_none());
        // The ring of a driver that starts anew, with nothing to do.
        available(1);
        lane.hold().state = State::Running;
        let mut moving = lane.running(&memory, Patience::Late).unwrap();
        let _ = moving.drain(&accelerator, 0, |_, _| panic!("there is nothing"));
        assert_eq!(driver.used().idx().load(), 0);
    }
}
