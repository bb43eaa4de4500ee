//! The moments that the specification leaves to the device ("What is not defined").
//!
//! Each is a *point*: a place where a device may be late without breaking a rule. The daemon can be
//! told to be late there, and tests use the same names. Points never cross the rings.

use core::fmt;

use crate::wire::Queue;

macro_rules! points {
    ($(
        $(#[doc = $meaning:literal])+
        $point:ident = $name:literal, $section:literal, $freedom:literal;
    )+) => {
        /// A moment that the device may choose.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Point { $( $(#[doc = $meaning])+ $point, )+ }

        impl Point {
            /// All of them, queue by queue and in the order in which a request passes them.
            pub const ALL: &'static [Self] = &[ $( Self::$point, )+ ];

            /// Its name: a queue, or the engines, and what is about to happen next.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$point => $name, )+ }
            }

            /// What has happened when the point is reached, and what has not.
            pub const fn meaning(self) -> &'static str {
                match self { $( Self::$point => concat!($($meaning),+).trim_ascii(), )+ }
            }

            /// The section of `virtio-hmm.md` that leaves the moment open.
            pub const fn section(self) -> &'static str {
                match self { $( Self::$point => $section, )+ }
            }

            /// The label of the sentence that gives the device this freedom.
            pub const fn freedom(self) -> &'static str {
                match self { $( Self::$point => $freedom, )+ }
            }
        }
    };
}

points! {
    /// A control request is there; the device has not taken it.
    ControlSeen = "control.seen", "Virtqueues", "dev-late-chain";
    /// A control request has been read, and not carried out.
    ControlTaken = "control.taken", "Virtqueues", "dev-late-chain";
    /// `Init` has ended the jobs of the time before; spaces and memory are as they were.
    ControlInit = "control.init", "Reset", "dev-late-init";
    /// A `Fetch` on the control queue has kept the promise, and copied nothing.
    ControlFetch = "control.fetch", "Fetch", "dev-late-fetch";
    /// An entry of a `Fetch` on the control queue is about to be copied.
    ControlItem = "control.item", "Fetch", "dev-late-item";
    /// A control request has been carried out, and its reply not written.
    ControlExecuted = "control.executed", "Virtqueues", "dev-late-chain";
    /// The reply to a control request is written, and its chain not in the used ring.
    ControlAnswered = "control.answered", "Virtqueues", "dev-late-chain";
    /// Chains of the control queue are in the used ring; the driver has not been told.
    ControlPublished = "control.published", "Virtqueues", "dev-late-chain";

    /// A DMA request is there; the device has not taken it.
    DmaSeen = "dma.seen", "Virtqueues", "dev-late-chain";
    /// A DMA request has been read, and not carried out.
    DmaTaken = "dma.taken", "Virtqueues", "dev-late-chain";
    /// A `Fetch` on the dma queue has kept the promise, and copied nothing.
    DmaFetch = "dma.fetch", "Fetch", "dev-late-fetch";
    /// An item of a copy list, or an entry of a `Fetch`, is about to be carried out.
    DmaItem = "dma.item", "DMA queue", "dev-late-item";
    /// A DMA request has been carried out, and its reply not written.
    DmaExecuted = "dma.executed", "Virtqueues", "dev-late-chain";
    /// The reply to a DMA request is written, and its chain not in the used ring.
    DmaAnswered = "dma.answered", "Virtqueues", "dev-late-chain";
    /// Chains of the dma queue are in the used ring; the driver has not been told.
    DmaPublished = "dma.published", "Virtqueues", "dev-late-chain";

    /// A job is there; the device has not taken it.
    SubmitSeen = "submit.seen", "Virtqueues", "dev-late-chain";
    /// A job has been read, and cannot run yet.
    SubmitTaken = "submit.taken", "Virtqueues", "dev-late-chain";
    /// A job has ended, and its reply is not written.
    SubmitEnded = "submit.ended", "Submit queue", "dev-late-chain";
    /// The reply to a job is written, and its chain not in the used ring.
    SubmitAnswered = "submit.answered", "Virtqueues", "dev-late-chain";
    /// Chains of the submit queue are in the used ring; the driver has not been told.
    SubmitPublished = "submit.published", "Virtqueues", "dev-late-chain";

    /// A fault waits and a buffer may be there; the device has not taken one.
    FaultRaised = "fault.raised", "Fault queue", "dev-late-fault";
    /// A buffer has been taken, and no record put into it.
    FaultTaken = "fault.taken", "Fault queue", "dev-late-fault";
    /// Records are chosen and may be answered; the buffer is not written.
    FaultReported = "fault.reported", "Fault queue", "dev-late-fault";
    /// A buffer is written, and not in the used ring.
    FaultFilled = "fault.filled", "Fault queue", "dev-late-fault";
    /// Buffers are in the used ring; the driver has not been told.
    FaultPublished = "fault.published", "Fault queue", "dev-late-fault";
    /// `Retry` has been carried out; the job cannot run yet.
    FaultRetried = "fault.retried", "Answer", "dev-late-retry";

    /// An engine is between two steps of a job, with what its TLB has learnt.
    EngineStep = "engine.step", "The promise of invalidation", "dev-late-step";
}

impl Point {
    /// The point with this name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|point| point.name() == name)
    }

    /// Its group: the name of a queue, or `engine`.
    pub fn group(self) -> &'static str {
        match self.queue() {
            Some(Queue::Control) => "control",
            Some(Queue::Dma) => "dma",
            Some(Queue::Submit) => "submit",
            Some(Queue::Fault) => "fault",
            None => "engine",
        }
    }

    /// The queue whose requests pass it; none is an engine's.
    pub const fn queue(self) -> Option<Queue> {
        use Point::*;
        match self {
            ControlSeen | ControlTaken | ControlInit | ControlFetch | ControlItem
            | ControlExecuted | ControlAnswered | ControlPublished => Some(Queue::Control),
            DmaSeen | DmaTaken | DmaFetch | DmaItem | DmaExecuted | DmaAnswered | DmaPublished => {
                Some(Queue::Dma)
            }
            SubmitSeen | SubmitTaken | SubmitEnded | SubmitAnswered | SubmitPublished => {
                Some(Queue::Submit)
            }
            FaultRaised | FaultTaken | FaultReported | FaultFilled | FaultPublished
            | FaultRetried => Some(Queue::Fault),
            EngineStep => None,
        }
    }

    /// The label of the sentence that allows the item that passes here to be swapped with the next
    /// one, if there is such a sentence.
    pub const fn order(self) -> Option<&'static str> {
        use Point::*;
        match self {
            ControlAnswered | DmaAnswered | SubmitAnswered => Some("dev-order-returned"),
            DmaTaken => Some("dev-order-copies"),
            SubmitTaken => Some("dev-order-jobs"),
            FaultRaised => Some("dev-order-faults"),
            _ => None,
        }
    }

    /// Whether the item that passes here may be swapped with the next one.
    pub const fn order_is_free(self) -> bool {
        self.order().is_some()
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
