// SPDX-License-Identifier: GPL-2.0

//! Probe and remove: builds the parts of a device, and takes them apart.

use crate::{
    chardev::{
        dmirror, file,
        node::{self, Node},
    },
    clients::Clients,
    device::{core::Core, limits::Limits, shares::Rules, Device},
    fault::Dispatcher,
    lifecycle::{self, Alive},
    migrate::cpu_fault::CpuFaultHandler,
    mm::memremap::MemoryType,
    module_parameters,
    space::Spaces,
    virtio::{self, BoundQueues, Interrupts, Plan, Queues},
    wait::Workqueue,
    wire::{
        self,
        config::{capability, MEMORY_REGION},
        Queue,
    },
};
use core::pin::Pin;
use kernel::{device, new_mutex, prelude::*, sync::Arc, sync::Mutex};

/// The queues, in the order of their numbers. If there is no memory for an indirect table, a chain
/// takes one descriptor for each piece. Request and reply are one piece each. A list of copies may
/// consist of up to `VIRTIO_HMM_MAX_PIECES` pages. A fault buffer has no request.
const QUEUES: [Plan; wire::QUEUE_COUNT] = [
    Plan {
        name: c"control",
        pieces: 2,
        // A fault takes two of its slots at once.
        least: 2,
        // No thread waits for the replies to `Map` and `Answer`.
        interrupts: Interrupts::OnDemand,
    },
    Plan {
        name: c"dma",
        pieces: 40,
        least: 1,
        interrupts: Interrupts::OnDemand,
    },
    Plan {
        name: c"submit",
        pieces: 2,
        least: 1,
        interrupts: Interrupts::Always,
    },
    Plan {
        name: c"fault",
        pieces: 1,
        least: 1,
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

/// The driver's data for a device.
#[pin_data]
pub(crate) struct Data {
    #[pin]
    parts: Mutex<Option<Parts>>,
}

/// The parts of a device, in the order of teardown.
struct Parts {
    /// When this is dropped, programs can no longer open files.
    _node: Node<file::OpenFile>,
    /// When this is dropped, the kernel's tests can no longer open files.
    _dmirror: Option<Node<dmirror::Dmirror>>,
    /// Ends all use of the device, moves all pages to system memory and resets the device.
    alive: Alive,
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

    fn prepare(_device: &virtio::Device<device::Core<'_>>, data: Pin<&Self::Data>) {
        let parts = data.parts.lock();
        if let Some(parts) = parts.as_ref() {
            parts.alive.prepare();
        }
    }

    fn freeze(_device: &virtio::Device<device::Core<'_>>, data: Pin<&Self::Data>) -> Result {
        let parts = data.parts.lock();
        parts.as_ref().map_or(Ok(()), |parts| parts.alive.freeze())
    }

    fn restore(_device: &virtio::Device<device::Core<'_>>, data: Pin<&Self::Data>) -> Result {
        let parts = data.parts.lock();
        parts.as_ref().map_or(Ok(()), |parts| parts.alive.restore())
    }
}

impl Parts {
    fn new(device: &virtio::Device<device::Core<'_>>) -> Result<Self> {
        // {drv-version-1}
        if !device.is_modern() {
            dev_err!(device, "the device follows a draft of virtio\n");
            return Err(ENODEV);
        }
        let config = lifecycle::read_config(|offset| device.read_config(offset));
        let mut limits = Limits::new(&config)?;
        let kind = memory_kind(device, &mut limits)?;

        let workqueue = Workqueue::new(c"virtio_hmm")?;
        let queues = Queues::new(&QUEUES, workqueue.link())?;
        let mut bound = BoundQueues::new(queues.clone(), device);
        bound.start()?;
        limits.max_jobs = limits.max_jobs.min(queues.capacity(Queue::Submit.raw()));
        for (queue, plan) in (0..).zip(&QUEUES) {
            if queues.capacity(queue) < plan.least {
                dev_err!(device, "the {} queue is too short\n", plan.name);
                return Err(ENODEV);
            }
        }
        let rules = Rules {
            user: *module_parameters::user_share.value_ref(),
            process: *module_parameters::process_share.value_ref(),
        };
        let core = Core::new(limits, queues, workqueue.link(), rules)?;
        let spaces = Spaces::new(&core)?;
        core.begin()
            .inspect_err(|error| dev_err!(device, "the device cannot be started: {:?}\n", error))?;
        let faults = Arc::new(CpuFaultHandler::new(spaces.clone()), GFP_KERNEL)?;
        // {drv-region-after-init}
        let hmm = Device::new(core, kind, faults)
            .inspect_err(|error| dev_err!(device, "no pages for its memory: {:?}\n", error))?;
        let clients = Clients::new(hmm.clone(), spaces.clone())?;
        let serving = Dispatcher::start(hmm.clone(), spaces)?;
        // {drv-fault-buffers}
        serving.offer(&hmm.core.link)?;
        let parts = lifecycle::Parts {
            serving,
            _workqueue: workqueue,
            queues: bound,
        };
        let alive = Alive::new(clients.clone(), config, parts)?;
        let node = Node::new(&clients, node::Names::PROGRAMS)?;
        hmm.core.set_node(node.number());
        let dmirror = if *module_parameters::dmirror.value_ref() {
            node_for_tests(&clients)?
        } else {
            None
        };
        dev_info!(
            device,
            "/dev/{}: {} MiB of {} device memory, {} engines\n",
            node.name(),
            limits.device_memory >> 20,
            match kind {
                MemoryType::DevicePrivate => c"private",
                MemoryType::DeviceCoherent { .. } => c"coherent",
            },
            limits.engines,
        );
        Ok(Self {
            _node: node,
            _dmirror: dmirror,
            alive,
        })
    }
}

/// The node for the kernel's tests, unless all names are taken.
fn node_for_tests(clients: &Arc<Clients>) -> Result<Option<Node<dmirror::Dmirror>>> {
    let names = node::Names::of_tests(clients.device.pagemap.is_coherent());
    match Node::new(clients, names) {
        Ok(node) => Ok(Some(node)),
        Err(error) if error == ENOSPC => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether CPUs can address the device's memory. Clears that capability in `limits` if they cannot
/// do so on this system.
///
/// # Errors
///
/// `ENODEV` if the device reports the capability but its region has another size than its memory.
fn memory_kind(
    device: &virtio::Device<device::Core<'_>>,
    limits: &mut Limits,
) -> Result<MemoryType> {
    if !limits.is_coherent() {
        return Ok(MemoryType::DevicePrivate);
    }
    let Some(region) = device.shared_memory(MEMORY_REGION) else {
        dev_info!(
            device,
            "coherent memory out of reach is used as private memory\n"
        );
        limits.capabilities &= !capability::COHERENT;
        return Ok(MemoryType::DevicePrivate);
    };
    if region.end - region.start != limits.device_memory {
        dev_err!(device, "its region is not as large as its memory\n");
        return Err(ENODEV);
    }
    Ok(MemoryType::DeviceCoherent {
        start: region.start,
    })
}
