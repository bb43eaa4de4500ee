//! Words for people: errors, ends of jobs, and the version.

use std::ffi::{c_char, c_int, CStr};

use hmm::calls;
use virtio_hmm_spec::wire::job::JobReply;

/// The version of this library.
const VERSION: &CStr =
    match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };

/// hmm_error_text() - Puts into words what an error of this library means.
///
/// @error: what a function returned, a negative errno
/// @text: receives the text, which a zero byte ends; a text that is too long is
///     cut off; may be NULL if @room is zero
/// @room: how many bytes @text has room for, the zero byte included
///
/// Return: the length of the whole text in bytes, without the zero byte, as
/// snprintf(3) does.
#[no_mangle]
pub unsafe extern "C" fn hmm_error_text(error: c_int, text: *mut c_char, room: usize) -> usize {
    // SAFETY: the header asks for `room` bytes.
    unsafe { put(&calls::meaning(error.saturating_neg()), text, room) }
}

/// hmm_job_text() - Puts into words how a job ended.
///
/// @reply: how it ended
/// @text: as in hmm_error_text()
/// @room: as in hmm_error_text()
///
/// Return: as hmm_error_text().
#[no_mangle]
pub unsafe extern "C" fn hmm_job_text(
    reply: *const JobReply,
    text: *mut c_char,
    room: usize,
) -> usize {
    // SAFETY: the header asks for a reply, or null.
    let ending = unsafe { reply.as_ref() }.map(calls::ending);
    // SAFETY: the header asks for `room` bytes.
    unsafe { put(ending.as_deref().unwrap_or(""), text, room) }
}

/// hmm_version() - The version of this library, such as "0.1.0".
///
/// Return: a string that is never freed.
#[no_mangle]
pub extern "C" fn hmm_version() -> *const c_char {
    VERSION.as_ptr()
}

/// Writes a text and a zero byte, as much of it as there is room for. Returns its length.
///
/// # Safety
///
/// `place` is valid for writes of `room` bytes, or null.
unsafe fn put(text: &str, place: *mut c_char, room: usize) -> usize {
    if !place.is_null() && room > 0 {
        let mut fitting = (0..room.min(text.len() + 1)).rev();
        let length = fitting.find(|&end| text.is_char_boundary(end));
        let length = length.unwrap_or(0);
        // SAFETY: it is not null and has room for `length` bytes and one more. The text is ours.
        unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), place.cast(), length) };
        // SAFETY: as above.
        let end = unsafe { place.add(length) };
        // SAFETY: as above.
        unsafe { end.write(0) };
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_off_where_the_room_ends_and_between_letters() {
        let whole = |room: usize| {
            let mut place = [b'x'; 8];
            // SAFETY: there is room for as much.
            let length = unsafe { put("an ü", place.as_mut_ptr().cast(), room) };
            assert_eq!(length, 5);
            let text = CStr::from_bytes_until_nul(&place).map(CStr::to_owned);
            text.map_or(String::new(), |text| text.into_string().unwrap())
        };
        assert_eq!(whole(8), "an ü");
        assert_eq!(whole(6), "an ü");
        assert_eq!(whole(5), "an ", "half a letter is none");
        assert_eq!(whole(1), "");
        // SAFETY: nothing is written.
        let length = unsafe { put("text", std::ptr::null_mut(), 0) };
        assert_eq!(length, 4);
    }

    #[test]
    fn the_version_is_that_of_the_package() {
        // SAFETY: it returns a string.
        let version = unsafe { CStr::from_ptr(hmm_version()) };
        assert_eq!(version.to_str().unwrap(), env!("CARGO_PKG_VERSION"));
    }
}
