//! Wrong replies.

use std::mem::offset_of;

use virtio_hmm_spec::wire::job::JobReply;
use zerocopy::little_endian::U32;

use super::rule::SplitMix;

/// Flips bits of a reply: one of them, or all at random.
pub fn garble(reply: &mut [u8], number: u64) {
    let mut random = SplitMix(number);
    if random.next() % 2 == 0 {
        for byte in reply {
            let [low, ..] = random.next().to_le_bytes();
            *byte = low;
        }
    } else {
        let bits = (reply.len() as u64 * 8).max(1);
        let bit = random.next() % bits;
        if let Some(byte) = usize::try_from(bit / 8)
            .ok()
            .and_then(|at| reply.get_mut(at))
        {
            *byte ^= 1 << (bit % 8);
        }
    }
}

/// Puts a status into a reply that there is not. A reply begins with its status.
pub fn unknown_status(reply: &mut [u8]) {
    for byte in reply.iter_mut().take(size_of::<U32>()) {
        *byte = 0x7f;
    }
}

/// Changes one bit of the first result of a job, always the same.
pub fn wrong_result(reply: &mut [u8]) {
    if let Some(byte) = reply.get_mut(offset_of!(JobReply, values)) {
        *byte ^= 1;
    }
}

#[cfg(test)]
mod tests {
    use virtio_hmm_spec::wire::command::{ReplyHeader, Status};
    use zerocopy::FromBytes;

    use super::*;

    #[test]
    fn an_unknown_status_is_none_that_there_is() {
        let mut reply = [0; 16];
        unknown_status(&mut reply);
        let (status, rest) = ReplyHeader::read_from_prefix(&reply).unwrap();
        assert_eq!(Status::from_raw(status.status.get()), None);
        assert_eq!(rest, [0; 16 - size_of::<ReplyHeader>()]);
        unknown_status(&mut []);
    }

    #[test]
    fn a_wrong_result_is_the_only_thing_that_is_wrong() {
        let mut reply = [0; size_of::<JobReply>()];
        wrong_result(&mut reply);
        let job = JobReply::read_from_bytes(&reply).unwrap();
        assert_eq!(job.values.map(u64::from), [1, 0, 0, 0]);
        wrong_result(&mut reply);
        assert_eq!(reply, [0; size_of::<JobReply>()]);
        wrong_result(&mut []);
    }

    #[test]
    fn a_garbled_reply_is_never_right_by_chance_of_one_bit() {
        for number in 0..100 {
            let mut reply = [0x5a; 64];
            garble(&mut reply, number);
            assert_ne!(reply, [0x5a; 64]);
        }
        garble(&mut [], 1);
        garble(&mut [], 2);
    }
}
