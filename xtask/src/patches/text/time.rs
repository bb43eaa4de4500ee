
/// Converts a span of time to jiffies: zero for a negative one, and at most [`u32::MAX`]
/// milliseconds.
#[inline]
pub fn delta_to_jiffies(delta: Delta) -> Jiffies {
    let milliseconds = delta.as_millis_ceil().clamp(0, u32::MAX.into());
    msecs_to_jiffies(milliseconds as u32)
}
