//! Rings and chains that a hostile driver may write.

use std::sync::atomic::Ordering;

use proptest::prelude::*;
use vhost_device_hmm::queue::{self, Available, Chain};
use virtio_queue::desc::{split::Descriptor, RawDescriptor};
use virtio_queue::mock::MockSplitQueue;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryMmap};

const SIZE: u16 = 16;
const MEMORY: usize = 1 << 20;
const MOST: usize = 512;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

fn memory() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap()
}

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> RawDescriptor {
    RawDescriptor::from(Descriptor::new(address, length, flags, next))
}

/// A ring with one chain in it.
fn ring(memory: &GuestMemoryMmap, chain: &[RawDescriptor]) -> Queue {
    let mock = MockSplitQueue::new(memory, SIZE);
    mock.build_desc_chain(chain).unwrap();
    mock.create_queue().unwrap()
}

// {dev-read-once}, {dev-used-length}
#[test]
fn a_chain_is_copied_once_and_answered_in_its_pieces() {
    let memory = memory();
    memory
        .write_slice(b"hello world", GuestAddress(0x1_0000))
        .unwrap();
    let chain = [
        descriptor(0x1_0000, 6, NEXT, 0),
        descriptor(0x1_0006, 0, NEXT, 0),
        descriptor(0x1_0006, 5, NEXT, 0),
        descriptor(0x2_0000, 3, NEXT | WRITE, 0),
        descriptor(0x3_0000, 100, WRITE, 0),
    ];
    let mut queue = ring(&memory, &chain);
    let mut chain = Chain::default();
    let taken = queue::take(&mut queue, &memory, 8, &mut chain).unwrap();
    assert_eq!(taken, Available::Chain);
    memory
        .write_slice(b"HELLO WORLD", GuestAddress(0x1_0000))
        .unwrap();
    assert_eq!(chain.request(), b"hello wo");
    assert_eq!((chain.length(), chain.room()), (11, 103));
    assert_eq!(chain.reply(&memory, b"abcdef"), 6);
    let mut reply = [0; 3];
    memory
        .read_slice(&mut reply, GuestAddress(0x2_0000))
        .unwrap();
    assert_eq!(&reply, b"abc");
    memory
        .read_slice(&mut reply, GuestAddress(0x3_0000))
        .unwrap();
    assert_eq!(&reply, b"def");
    assert_eq!(
        chain.reply(&memory, &[1; 104]),
        0,
        "a reply that does not fit is none"
    );
    let taken = queue::take(&mut queue, &memory, 8, &mut chain).unwrap();
    assert_eq!(taken, Available::Nothing);
}

#[test]
fn the_driver_is_told_when_the_ring_passes_what_it_has_named() {
    let memory = memory();
    let mock = MockSplitQueue::new(&memory, SIZE);
    let mut queue: Queue = mock.create_queue().unwrap();
    queue.set_event_idx(true);
    let used_event = mock.avail_addr().unchecked_add(4 + 2 * u64::from(SIZE));
    // Also if the indices wrap at sixteen bits.
    for start in [0, u16::MAX - 2] {
        queue.set_next_used(start);
        let chains: Vec<_> = (0..5).map(|head| (head, 0)).collect();
        queue::put_back(&mut queue, &memory, &chains).unwrap();
        let wanted = (0..8_u16).filter(|event| {
            let event = start.wrapping_add(*event).wrapping_sub(1);
            memory.write_obj(event.to_le(), used_event).unwrap();
            queue::wants_interrupt(&queue, &memory, start).unwrap()
        });
        assert_eq!(wanted.collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
        let now = queue.next_used();
        assert!(!queue::wants_interrupt(&queue, &memory, now).unwrap());
    }
}

#[test]
fn a_driver_that_names_nothing_says_by_a_flag_whether_it_is_told() {
    let memory = memory();
    let mock = MockSplitQueue::new(&memory, SIZE);
    let queue: Queue = mock.create_queue().unwrap();
    for (flags, wanted) in [(0, true), (1, false), (2, true)] {
        memory
            .write_obj(u16::to_le(flags), mock.avail_addr())
            .unwrap();
        assert_eq!(queue::wants_interrupt(&queue, &memory, 0).unwrap(), wanted);
    }
}

#[test]
fn a_chain_that_was_given_back_is_there_again() {
    let memory = memory();
    let mut queue = ring(&memory, &[descriptor(0x1_0000, 6, WRITE, 0)]);
    let mut chain = Chain::default();
    for _ in 0..3 {
        let taken = queue::take(&mut queue, &memory, 8, &mut chain).unwrap();
        assert_eq!(taken, Available::Chain);
        assert_eq!(chain.head(), 0);
        queue::untake(&mut queue);
    }
}

#[test]
fn an_indirect_table_of_the_greatest_length_is_cut_short() {
    let memory = memory();
    for index in 0..60_000_u64 {
        let next = u16::try_from(index + 1).unwrap();
        let link = descriptor(0x1000, 1, NEXT, next);
        memory
            .write_obj(link, GuestAddress(0x1_0000 + index * 16))
            .unwrap();
    }
    let mut queue = ring(&memory, &[descriptor(0x1_0000, 60_000 * 16, INDIRECT, 0)]);
    let taken = queue::take(&mut queue, &memory, MOST, &mut Chain::default()).unwrap();
    assert_eq!(taken, Available::Unusable(Some(0)));
}

#[test]
fn an_index_that_jumps_breaks_the_ring() {
    let memory = memory();
    let mut queue = ring(&memory, &[descriptor(0x1_0000, 6, WRITE, 0)]);
    let index = GuestAddress(queue.avail_ring() + 2);
    memory.store(SIZE + 1, index, Ordering::Release).unwrap();
    assert!(queue::take(&mut queue, &memory, MOST, &mut Chain::default()).is_err());
}

/// Numbers that are often nearly valid.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => 0..MEMORY as u64,
        1 => (MEMORY as u64 - 16)..(MEMORY as u64 + 16),
        1 => any::<u64>(),
    ]
}

fn hostile() -> impl Strategy<Value = RawDescriptor> {
    let length =
        prop_oneof![4 => 0..200_u32, 1 => (0..20_u32).prop_map(|n| n * 16), 1 => any::<u32>()];
    let flags = prop_oneof![8 => 0..8_u16, 1 => any::<u16>()];
    let next = prop_oneof![8 => 0..=SIZE, 1 => any::<u16>()];
    (address(), length, flags, next).prop_map(|(a, l, f, n)| descriptor(a, l, f, n))
}

proptest! {
    #[test]
    fn any_ring_is_drained_in_bounded_time(
        table in proptest::collection::vec(hostile(), usize::from(SIZE)),
        indirect in proptest::collection::vec(hostile(), 64),
        heads in proptest::collection::vec(0..=SIZE, usize::from(SIZE)),
        available in prop_oneof![4 => 0..=SIZE, 1 => any::<u16>()],
        event_idx in any::<bool>(),
    ) {
        let memory = memory();
        let mock = MockSplitQueue::new(&memory, SIZE);
        for (index, descriptor) in (0..).zip(&table) {
            mock.desc_table().store(index, *descriptor).unwrap();
        }
        // An indirect descriptor may find these at any address.
        for (index, descriptor) in (0..).zip(&indirect) {
            memory.write_obj(*descriptor, GuestAddress(0x8_0000 + index * 16)).unwrap();
        }
        for (index, head) in (0..).zip(&heads) {
            mock.avail().ring().ref_at(index).unwrap().store(u16::to_le(*head));
        }
        mock.avail().idx().store(u16::to_le(available));
        let mut queue: Queue = mock.create_queue().unwrap();
        queue.set_event_idx(event_idx);

        let (mut taken, mut chain) = (0, Chain::default());
        loop {
            match queue::take(&mut queue, &memory, MOST, &mut chain) {
                Err(_) | Ok(Available::Nothing) => break,
                Ok(Available::Unusable(None)) => {}
                Ok(Available::Unusable(Some(head))) => {
                    prop_assert!(head < SIZE);
                    // The ring itself may be where a reply was written.
                    let _ = queue::put_back(&mut queue, &memory, &[(head, 0)]);
                }
                Ok(Available::Chain) => {
                    prop_assert!(chain.request().len() <= MOST);
                    prop_assert!(chain.request().len() as u64 <= chain.length());
                    let reply = vec![0; usize::try_from(chain.room().min(64)).unwrap()];
                    let written = chain.reply(&memory, &reply);
                    prop_assert_eq!(written as usize, reply.len());
                    prop_assert!(chain.head() < SIZE);
                    queue::put_back(&mut queue, &memory, &[(chain.head(), written)]).unwrap();
                }
            }
            taken += 1;
            // A reply may have changed the index. Even so, the loop must end.
            if taken > SIZE {
                break;
            }
        }
        let _ = queue::wants_interrupt(&queue, &memory, 0).unwrap();
        queue::refuse_kicks(&mut queue, &memory).unwrap();
        let _ = queue::ask_for_kicks(&mut queue, &memory).unwrap();
    }
}
