// SPDX-License-Identifier: GPL-2.0

//! Probe and remove: builds the parts of a device, and takes them apart.

use crate::{
    device::{Core, Device, Limits},
    dmirror,
    fault::{Dispatcher, Serving},
    file,
    mm::pagemap::Kind,
    module_parameters,
    node::{self, Node},
    virtio::{self, Interrupts, Plan, Queues, RunningQueues},
    wait::Workqueue,
    wire::{
        self,
        config::{capability, Config, MEMORY_REGION},
        Queue,
    },
};
use core::pin::Pin;
use kernel::{device, new_mutex, prelude::*, sync::Arc, sync::Mutex};
use zerocopy::FromZeros;

/// The queues, in the order of their numbers. If the ring has no memory for an indirect table,
/// a chain takes a descriptor for each piece: request and reply are one each. A list of copies
/// may lie in as many pages as `VIRTIO_HMM_MAX_PIECES` says; a fault buffer has no request.
const QUEUES: [Plan; wire::QUEUE_COUNT] = [
    Plan {
        name: c"control",
        pieces: 2,
        // Nobody waits for the replies to `Map` and `Answer`.
        interrupts: Interrupts::OnDemand,
    },
    Plan {
        name: c"dma",
        pieces: 40,
        interrupts: Interrupts::OnDemand,
    },
    Plan {
        name: c"submit",
        pieces: 2,
        interrupts: Interrupts::Always,
    },
    Plan {
        name: c"fault",
        pieces: 1,
        interrupts: Interrupts::Always,
    },
];

kernel::module_device_table!(
    "virtio",
    virtio::DeviceId,
    DEVICES,
    @none,
    [virtio::DeviceId::new(wire::DEVICE_ID)]
);

/// The driver.
pub(crate) struct HmmDriver;

/// What the driver keeps for a device.
#[pin_data]
pub(crate) struct Data {
    #[pin]
    parts: Mutex<Option<Parts>>,
}

/// The parts of a device, in the order in which they are taken apart.
struct Parts {
    /// No file is opened any more.
    _node: Node<file::Session>,
    /// Nor by the kernel's tests.
    _dmirror: Option<Node<dmirror::Session>>,
    /// Nobody uses the device any more, and all pages are home.
    _removal: Removal,
    /// No fault is taken on any more.
    _serving: Serving,
    /// All work has been done.
    _workqueue: Workqueue,
    /// The device is reset.
    _running: RunningQueues,
}

/// Ends all use of the device when it is dropped.
struct Removal(Arc<Device>);

impl Drop for Removal {
    fn drop(&mut self) {
        self.0.remove();
    }
}

impl virtio::Driver for HmmDriver {
    type Data = Data;
    const ID_TABLE: virtio::IdTable = &DEVICES;

    fn probe(device: &virtio::Device<device::Core<'_>>) -> impl PinInit<Self::Data, Error> {
        let parts = Parts::new(device);
        pin_init::pin_init_scope(move || {
            let parts = parts?;
            Ok(try_pin_init!(Data {
                parts <- new_mutex!(Some(parts), "Data::parts"),
            }))
        })
    }

    fn unbind(_device: &virtio::Device<device::Core<'_>>, data: Pin<&Self::Data>) {
        let parts = data.parts.lock().take();
        drop(parts);
    }
}

impl Parts {
    fn new(device: &virtio::Device<device::Core<'_>>) -> Result<Self> {
        if !device.is_modern() {
            dev_err!(device, "the device follows a draft of virtio\n");
            return Err(ENODEV);
        }
        let mut limits = Limits::new(&read_config(device))?;
        let kind = memory_kind(device, &mut limits)?;

        let workqueue = Workqueue::new(c"virtio_hmm")?;
        let queues = Queues::new(&QUEUES, workqueue.link())?;
        let running = queues.clone().start(device)?;
        limits.max_jobs = limits.max_jobs.min(queues.capacity(Queue::Submit.raw()));
        let core = Core::new(limits, queues, workqueue.link())?;
        core.reset()
            .inspect_err(|error| dev_err!(device, "the device cannot be started: {:?}\n", error))?;
        let hmm = Device::new(core, kind)
            .inspect_err(|error| dev_err!(device, "no pages for its memory: {:?}\n", error))?;
        let serving = Dispatcher::start(hmm.clone())?;
        let removal = Removal(hmm.clone());
        let node = Node::new(&hmm, node::Names::PROGRAMS)?;
        let dmirror = if *module_parameters::dmirror.value_ref() {
            node_for_tests(&hmm)?
        } else {
            None
        };
        dev_info!(
            device,
            "/dev/{}: {} MiB of {} device memory, {} engines\n",
            node.name(),
            limits.device_memory >> 20,
            match kind {
                Kind::Private => c"private",
                Kind::Coherent { .. } => c"coherent",
            },
            limits.engines,
        );
        Ok(Self {
            _node: node,
            _dmirror: dmirror,
            _removal: removal,
            _serving: serving,
            _workqueue: workqueue,
            _running: running,
        })
    }
}

/// The node for the kernel's tests, as long as there are names left.
fn node_for_tests(device: &Arc<Device>) -> Result<Option<Node<dmirror::Session>>> {
    let names = node::Names::of_tests(device.pagemap.is_coherent());
    match Node::new(device, names) {
        Ok(node) => Ok(Some(node)),
        Err(error) if error == ENOSPC => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether CPUs can have addresses for the device's memory. Takes it out of `limits` that
/// they can if they cannot here.
///
/// # Errors
///
/// `ENODEV` if the device says that they can and shows something else.
fn memory_kind(device: &virtio::Device<device::Core<'_>>, limits: &mut Limits) -> Result<Kind> {
    if !limits.is_coherent() {
        return Ok(Kind::Private);
    }
    let Some(region) = device.shared_memory(MEMORY_REGION) else {
        dev_info!(
            device,
            "coherent memory out of reach is used as private memory\n"
        );
        limits.capabilities &= !capability::COHERENT;
        return Ok(Kind::Private);
    };
    if region.end - region.start != limits.device_memory {
        dev_err!(device, "its region is not as large as its memory\n");
        return Err(ENODEV);
    }
    Ok(Kind::Coherent {
        start: region.start,
    })
}

/// Reads the configuration space in pieces of four bytes, the smallest width of its
/// fields: each access is a message between virtual machine and device.
fn read_config(device: &virtio::Device<device::Core<'_>>) -> Config {
    let mut config = Config::new_zeroed();
    for (index, piece) in config.as_mut_bytes().chunks_exact_mut(4).enumerate() {
        piece.copy_from_slice(&device.read_config(index as u32 * 4).to_le_bytes());
    }
    config
}
