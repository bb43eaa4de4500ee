//! The events of the driver's tracepoints.
//!
//! Their fields are those of `guest-driver/trace.h`.

use crate::ftrace::{self, Line, Said};

/// What was traced in a guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guest {
    /// The driver's events, in the order of their times.
    pub events: Vec<Event>,
    /// How many events were lost, of all kinds.
    pub lost: u64,
}

/// An event, and the thread in which it happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The guest's time, in nanoseconds; up to [`ftrace::RESOLUTION`] less than it was.
    pub at: u64,
    /// The thread's name and number.
    pub task: String,
    /// The same.
    pub tid: u32,
    /// The device: `N` of `/dev/hmmN`.
    pub device: u32,
    /// The space, unless it is not known.
    pub space: Option<u32>,
    /// What happened.
    pub what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A fault of the device has arrived.
    Fault {
        /// The job that waits.
        job: u64,
        /// The address that it needs.
        address: u64,
        /// The rights that it needs.
        access: u64,
    },
    /// Pages of a region have been mapped, or could not be.
    Resolve {
        /// An address of the region.
        address: u64,
        /// How many faults were answered with it.
        faults: u64,
        /// Zero, or the number of the error, negative.
        error: i64,
        /// The pages that were mapped.
        pages: u64,
        /// The attempts that were in vain.
        retries: u64,
        /// How long it took, in nanoseconds.
        nanoseconds: u64,
    },
    /// Pages of a range have moved.
    Migrate {
        /// The range, empty if the pages were not found by address.
        start: u64,
        /// Its end.
        end: u64,
        /// The pages that have moved.
        pages: u64,
        /// Whether they moved to the device.
        to_device: bool,
        /// Why, as the driver says it.
        cause: String,
        /// How long each stage took, in nanoseconds, in the order of [`STAGES`].
        stages: [u64; 5],
        /// The frames of device memory that were in use afterwards.
        used: u64,
    },
    /// A process is about to change its address space.
    Change {
        /// The range that changes.
        start: u64,
        /// Its end.
        end: u64,
        /// Why, as the kernel says it.
        event: String,
    },
    /// The device has forgotten a range that a change waited for.
    Invalidate {
        /// The range.
        start: u64,
        /// Its end.
        end: u64,
        /// How long the change waited, in nanoseconds.
        nanoseconds: u64,
    },
    /// A job is in the submit queue.
    Submit {
        /// Its name.
        job: u64,
        /// What it does, by the operation's code.
        operation: u64,
    },
    /// The device has returned a job.
    Complete {
        /// Its name.
        job: u64,
        /// How it ended; -1 if the device was reset.
        status: i64,
    },
}

/// What a move is called: where pages move to, and why.
#[must_use]
pub fn kind_of_move(to_device: bool, cause: &str) -> String {
    let to = if to_device { "to device" } else { "to system" };
    format!("{to}, {cause}")
}

/// The stages of a move.
pub const STAGES: [&str; 5] = ["collect", "allocate", "copy", "commit", "finalise"];

impl Guest {
    /// Reads what `trace_pipe` has given. Events of other systems are left out.
    #[must_use]
    pub fn read(text: &str) -> Self {
        let mut guest = Self::default();
        for line in text.lines() {
            match ftrace::read(line) {
                Some(Said::Event(line)) => guest.events.extend(Event::read(&line)),
                Some(Said::Lost(lost)) => guest.lost += lost,
                None => {}
            }
        }
        guest.events.sort_by_key(|event| event.at);
        guest
    }
}

impl Event {
    fn read(line: &Line<'_>) -> Option<Self> {
        let number = |name| line.number(name);
        let signed = |name| line.field(name)?.parse::<i64>().ok();
        let what = match line.event.strip_prefix("virtio_hmm_")? {
            "fault" => What::Fault {
                job: number("job")?,
                address: number("address")?,
                access: number("access")?,
            },
            "resolve" => What::Resolve {
                address: number("address")?,
                faults: number("faults")?,
                error: signed("error")?,
                pages: number("pages")?,
                retries: number("retries")?,
                nanoseconds: number("nanoseconds")?,
            },
            "migrate" => {
                let mut stages = [0; STAGES.len()];
                for (stage, name) in stages.iter_mut().zip(STAGES) {
                    *stage = number(name)?;
                }
                What::Migrate {
                    start: number("start")?,
                    end: number("end")?,
                    pages: number("pages")?,
                    to_device: line.field("to")? == "device",
                    cause: line.field("cause")?.to_owned(),
                    stages,
                    used: number("used")?,
                }
            }
            "change" => What::Change {
                start: number("start")?,
                end: number("end")?,
                event: line.field("event")?.to_owned(),
            },
            "invalidate" => What::Invalidate {
                start: number("start")?,
                end: number("end")?,
                nanoseconds: number("nanoseconds")?,
            },
            "submit" => What::Submit {
                job: number("job")?,
                operation: number("operation")?,
            },
            "complete" => What::Complete {
                job: number("job")?,
                status: signed("status")?,
            },
            _ => return None,
        };
        Some(Self {
            at: line.at,
            task: line.task.to_owned(),
            tid: line.tid,
            device: u32::try_from(number("device")?).ok()?,
            space: number("space").and_then(|space| u32::try_from(space).ok()),
            what,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_the_driver_are_read_and_others_left_out() {
        let text = "\
 hmm-9 [001] ..... 2.000000: virtio_hmm_complete: device=0 space=0 job=3 status=-1
 hmm-9 [001] ..... 1.000000: virtio_hmm_submit: device=0 space=0 job=3 operation=4
 hmm-9 [001] ..... 1.500000: sched_switch: prev_comm=hmm
CPU:0 [LOST 5 EVENTS]
 hmm-9 [001] ..... 3.000000: virtio_hmm_migrate: device=1 space=-1 start=0x0 end=0x0 pages=512 huge=1 to=system cause=EXIT collect=1 allocate=2 copy=3 commit=4 finalise=5 used=6
";
        let Guest { events, lost } = Guest::read(text);
        assert_eq!(lost, 5);
        assert_eq!(events.len(), 3);
        assert_eq!(
            events[0].what,
            What::Submit {
                job: 3,
                operation: 4
            }
        );
        assert_eq!(events[1].what, What::Complete { job: 3, status: -1 });
        assert_eq!(events[2].space, None);
        assert_eq!(events[2].device, 1);
        let What::Migrate {
            stages, to_device, ..
        } = &events[2].what
        else {
            panic!("{:?}", events[2]);
        };
        assert_eq!((*stages, *to_device), ([1, 2, 3, 4, 5], false));
    }
}
