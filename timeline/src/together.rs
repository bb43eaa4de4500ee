//! A guest and its devices together: one timeline, and one sum.

use std::fmt::Write as _;
use std::time::Duration;

use hmm_cli::figure;
use serde::Serialize;

use crate::clocks::{self, Difference};
use crate::device::{self, Device};
use crate::draw::{draw, Drawn};
use crate::guest::Guest;
use crate::summary::{number, OfDevice, OfGuest};
use crate::tracks::Tracks;

/// What was traced of a guest and its devices.
#[derive(Debug)]
pub struct Together {
    guest: Guest,
    /// The devices, in the order of their nodes, and how far their clocks are from the guest's.
    devices: Vec<(Device, Result<Difference, clocks::Error>)>,
}

/// What it adds up to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sums {
    /// In the guest.
    pub guest: OfGuest,
    /// On each device.
    pub devices: Vec<OfDevice>,
}

/// Why a file of a device cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the trace of device {device}")]
pub struct Error {
    /// The device: `N` of `/dev/hmmN`.
    pub device: usize,
    /// Why.
    #[source]
    pub reason: device::Error,
}

impl Together {
    /// Reads the kernel's lines, and the files of the devices from `/dev/hmm0` on.
    ///
    /// # Errors
    ///
    /// [`Error`].
    pub fn read<'a>(
        events: &str,
        devices: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, Error> {
        let guest = Guest::read(events);
        let mut read = Vec::new();
        for (number, text) in (0..).zip(devices) {
            let reason = |reason| Error {
                device: read.len(),
                reason,
            };
            let device = Device::read(text).map_err(reason)?;
            let difference = Difference::find(&guest, number, &device);
            read.push((device, difference));
        }
        Ok(Self {
            guest,
            devices: read,
        })
    }

    /// Whether the kernel's lines have an event of the driver.
    #[must_use]
    pub fn has_events(&self) -> bool {
        !self.guest.events.is_empty()
    }

    /// How far the clocks of the devices are from the guest's, where that is known.
    pub fn differences(&self) -> impl Iterator<Item = Result<Difference, clocks::Error>> + '_ {
        self.devices.iter().map(|(_, difference)| *difference)
    }

    /// All of it on the guest's clock, less the devices whose clock is not known.
    #[must_use]
    pub fn tracks(&self) -> Tracks {
        let drawn: Vec<_> = (0..)
            .zip(&self.devices)
            .filter_map(|(number, (device, difference))| {
                Some(Drawn {
                    number,
                    device,
                    difference: (*difference).ok()?,
                })
            })
            .collect();
        draw(&self.guest, &drawn)
    }

    /// What it adds up to.
    #[must_use]
    pub fn sums(&self) -> Sums {
        Sums {
            guest: OfGuest::of(&self.guest),
            devices: self
                .devices
                .iter()
                .map(|(device, _)| OfDevice::of(device))
                .collect(),
        }
    }

    /// The same in lines for people.
    #[must_use]
    pub fn text(&self) -> String {
        let Sums { guest, devices } = self.sums();
        let mut text = guest.text();
        for (device, ((_, difference), sums)) in self.devices.iter().zip(&devices).enumerate() {
            text.push_str(&sums.text());
            // Writing to a string cannot fail.
            let _ = match difference {
                Ok(difference) => writeln!(
                    text,
                    "clocks      together within {}, by {}",
                    figure::time(Duration::from_nanos(difference.uncertainty)),
                    number(difference.jobs as u64, "job")
                ),
                Err(error) => writeln!(text, "clocks      device {device} is left out: {error}"),
            };
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{MAGIC, VERSION};

    const EVENTS: &str = "\
 hmm-9 [001] ..... 1.000000: virtio_hmm_submit: device=0 space=0 job=3 operation=4
 hmm-9 [001] ..... 1.000900: virtio_hmm_complete: device=0 space=0 job=3 status=0
";

    fn device(job: u64) -> String {
        format!(
            "{{\"trace\":\"{MAGIC}\",\"version\":{VERSION}}}\n\
             {{\"at\":100,\"thread\":\"t\",\"event\":\"queued\",\"job\":{job},\"operation\":\"Fill\"}}\n\
             {{\"at\":900,\"thread\":\"t\",\"event\":\"ended\",\"job\":{job},\"how\":\"Ok\"}}\n"
        )
    }

    #[test]
    fn a_device_whose_clock_is_not_known_is_left_out_and_that_is_told() {
        let (ours, strange) = (device(3), device(4));
        let both = Together::read(EVENTS, [ours.as_str(), strange.as_str()]).unwrap();
        let names: Vec<_> = both
            .tracks()
            .groups
            .into_iter()
            .map(|group| group.name)
            .collect();
        assert_eq!(names, ["guest, /dev/hmm0", "device, hmm0"]);
        assert!(
            both.text().contains("device 1 is left out"),
            "{}",
            both.text()
        );
        assert_eq!(both.sums().devices.len(), 2);
        assert!(both.has_events());
    }

    #[test]
    fn the_file_that_cannot_be_read_is_named() {
        let error = Together::read(EVENTS, [device(3).as_str(), "hello"]).unwrap_err();
        assert_eq!(error.device, 1);
    }
}
