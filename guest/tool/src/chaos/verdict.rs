//! Whether a device and the CPU see the same in a page that its process may be changing.
//!
//! It knows only readings, one after the other.

/// How many readings of either side must be the same before a difference is believed.
const ENOUGH: usize = 5;

/// How many readings are taken before a page is left alone that keeps changing.
const MOST: usize = 20;

/// What the readings of a page tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// More readings are needed.
    Open,
    /// Both sides have seen the same.
    Same,
    /// Both sides have seen the page again and again, each always the same, and not what the other
    /// one has seen.
    Different,
    /// The page changes too often to be compared.
    Restless,
}

/// The readings of a page, in turns: the device's, the CPU's, the device's, and so on.
#[derive(Debug, Default)]
pub(super) struct Readings {
    device: Option<u32>,
    cpu: Option<u32>,
    /// How many readings in a row have not contradicted the one before of the same side.
    steady: usize,
    all: usize,
}

impl Readings {
    /// The device has read the page.
    pub(super) fn device(&mut self, reading: u32) -> Verdict {
        let before = self.device.replace(reading);
        self.add(before, reading)
    }

    /// The CPU has read the page.
    pub(super) fn cpu(&mut self, reading: u32) -> Verdict {
        let before = self.cpu.replace(reading);
        self.add(before, reading)
    }

    fn add(&mut self, before: Option<u32>, reading: u32) -> Verdict {
        self.all += 1;
        let is_changed = before.is_some_and(|before| before != reading);
        self.steady = if is_changed { 1 } else { self.steady + 1 };
        match (self.device, self.cpu) {
            // The one was read right after the other.
            (Some(device), Some(cpu)) if device == cpu => Verdict::Same,
            (Some(_), Some(_)) if self.steady >= 2 * ENOUGH => Verdict::Different,
            _ if self.all >= MOST => Verdict::Restless,
            _ => Verdict::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The verdict on readings of the device and the CPU in turns.
    fn verdict(readings: &[(u32, u32)]) -> Verdict {
        let mut page = Readings::default();
        for &(device, cpu) in readings {
            for verdict in [page.device(device), page.cpu(cpu)] {
                if verdict != Verdict::Open {
                    return verdict;
                }
            }
        }
        Verdict::Open
    }

    #[test]
    fn one_equal_pair_is_enough_whichever_came_first() {
        assert_eq!(verdict(&[(7, 7)]), Verdict::Same);
        assert_eq!(verdict(&[(1, 7), (7, 9)]), Verdict::Same);
    }

    #[test]
    fn a_difference_is_believed_only_if_it_stays() {
        assert_eq!(verdict(&[(1, 2); 4]), Verdict::Open);
        assert_eq!(verdict(&[(1, 2); 5]), Verdict::Different);
        let mut changing = vec![(1, 2); 4];
        changing.push((1, 3));
        assert_eq!(verdict(&changing), Verdict::Open, "the process has written");
        changing.extend([(1, 3); 5]);
        assert_eq!(verdict(&changing), Verdict::Different);
    }

    #[test]
    fn a_page_that_keeps_changing_is_left_alone() {
        let changing: Vec<_> = (0..40)
            .map(|reading| (2 * reading, 2 * reading + 1))
            .collect();
        assert_eq!(verdict(&changing), Verdict::Restless);
    }
}
