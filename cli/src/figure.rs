//! Counts, sizes and times as a person reads them: three or four digits with a unit, or groups of
//! three digits.

use std::time::Duration;

/// The units of sizes, with their powers of two.
const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

/// A count, with a comma between groups of three digits.
#[must_use]
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A size in bytes, in the largest unit of which it is at least one, with one decimal unless it is a
/// whole number of them.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // Rounding may reach the next unit.
    let in_unit = |shift: u32| (u128::from(bytes) * 10 + (1 << shift >> 1)) >> shift;
    let Some((unit, shift)) = UNITS.into_iter().find(|&(_, shift)| in_unit(shift) >= 10) else {
        return format!("{bytes} B");
    };
    let tenths = in_unit(shift);
    if bytes % (1 << shift) == 0 {
        format!("{} {unit}", bytes >> shift)
    } else {
        format!("{}.{} {unit}", tenths / 10, tenths % 10)
    }
}

/// A time, in the largest unit of which it is at least one.
#[must_use]
pub fn time(time: Duration) -> String {
    match time.as_secs() {
        0 if time.is_zero() => "0".to_owned(),
        0..60 => {
            let text = format!("{time:.1?}");
            let unit = text.find(|c: char| !c.is_ascii_digit() && c != '.');
            let (number, unit) = text.split_at(unit.unwrap_or(text.len()));
            format!("{} {unit}", number.strip_suffix(".0").unwrap_or(number))
        }
        seconds @ 60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        seconds => format!("{} h {:02} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A time in at most seven characters, for the columns of a table, up to a day.
#[must_use]
pub fn short_time(time: Duration) -> String {
    if time.as_secs() < 10_000 {
        format!("{time:.1?}")
    } else {
        format!("{}s", time.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_in_groups_of_three_digits() {
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1000), "1,000");
        assert_eq!(count(65_536), "65,536");
        assert_eq!(count(u64::MAX), "18,446,744,073,709,551,615");
    }

    #[test]
    fn sizes_have_the_unit_that_leaves_few_digits() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(64 << 20), "64 MiB");
        assert_eq!(bytes(14_505_920), "13.8 MiB");
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB", "not 1024.0 KiB");
        assert_eq!(bytes(u64::MAX), "16777216.0 TiB");
    }

    #[test]
    fn times_have_the_unit_that_leaves_few_digits() {
        assert_eq!(time(Duration::ZERO), "0");
        assert_eq!(time(Duration::from_nanos(7)), "7 ns");
        assert_eq!(time(Duration::from_nanos(12_345)), "12.3 µs");
        assert_eq!(time(Duration::from_millis(39)), "39 ms");
        assert_eq!(time(Duration::from_millis(12_340)), "12.3 s");
        assert_eq!(time(Duration::from_secs(125)), "2 min 05 s");
        assert_eq!(time(Duration::from_secs(3 * 3600 + 12 * 60)), "3 h 12 min");
    }

    #[test]
    fn a_short_time_is_short() {
        for (time, text) in [
            (Duration::from_nanos(999_940), "999.9µs"),
            (Duration::from_millis(357), "357.0ms"),
            (Duration::from_secs(9999), "9999.0s"),
            (Duration::from_secs(86_400), "86400s"),
        ] {
            assert_eq!(short_time(time), text);
            assert!(text.chars().count() <= 7);
        }
    }
}
